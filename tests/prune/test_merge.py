"""Merging experts: averages are literal, permuted copies are found again, and what stays alone keeps every byte."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy.optimize import linear_sum_assignment

from minitron_cli.__main__ import run as minitron
from minitron_cli.checkpoint.provenance import read_plan
from minitron_cli.checkpoint.reader import open_checkpoint
from minitron_cli.errors import MinitronError
from minitron_cli.prune.merge import Merging, Routing, by_unit, matching, merged, one_of_each_cluster
from minitron_cli.prune.merge_cost import merge_cost
from minitron_cli.prune.request import MERGES
from minitron_cli.prune.verify import verify
from minitron_cli.prune.write import write_pruned
from minitron_cli.spec.plan import Merge, Plan, plan_problems
from minitron_cli.spec.scores import Scores
from tests.prune.cutting import difference, load, logits_of, plan_for
from tests.prune.reading import fuse_experts
from tests.toys import SPARSE, SPARSE_THROUGHOUT, toy_ids

FAMILIES = list(SPARSE_THROUGHOUT)
LAYOUTS = [(name, layout) for name in SPARSE for layout in ("disk", "memory") if layout == "disk" or name in FAMILIES]
INTO = [0, 0, 1, 1, 2]  # experts 0, 2, 4 stay; 1 joins 0, 3 joins 2
KEPT = [0, 2, 4]
SHARE = [0.25, 0.75, 0.5, 0.5, 1.0]


def stored(toy, model_type, layout, tmp_path, change=None):
    """A toy as it is on disk or as it is in memory, its experts changed by `change`."""
    model = load(toy(model_type))
    if change:
        with torch.no_grad():
            for _, experts in experts_of(model):
                change(experts)
    model.save_pretrained(tmp_path / "source")
    return fuse_experts(tmp_path / "source", tmp_path / "fused") if layout == "memory" else tmp_path / "source"


def experts_of(model):
    """(layer, experts) of the sparse layers, whatever the module around them is called."""
    for layer, block in enumerate(model.get_decoder().layers):
        yield from ((layer, module) for module in block.modules() if "down_proj" in module._parameters)


def first_of(experts):
    """The name of what the experts read the stream with."""
    return "gate_up_proj" if experts.has_gate else "up_proj"


def merge_plan(path, share=SHARE, into=INTO, **sizes):
    checkpoint = open_checkpoint(path)
    plan = plan_for(checkpoint, {"expert": 3, **sizes})
    kept = np.tile(KEPT, (plan.target["layer"], 1))
    merge = Merge(np.tile(into, (len(kept), 1)), np.tile(share, (len(kept), 1)))
    return checkpoint, replace(plan, kept={**plan.kept, "expert": kept}, merge=merge)


def plain(plan):
    return replace(plan, merge=None)


def weights_of(path):
    return load_file(path / "model.safetensors")


@torch.no_grad()
def neurons(experts, expert, order):
    """Reorder one expert's neurons in memory, by the layout of transformers' experts interface."""
    n = len(order)
    wide = torch.stack([2 * order, 2 * order + 1], 1).flatten() if experts.has_bias else torch.cat([order, order + n])
    wide = wide if experts.has_gate else order
    up, down = getattr(experts, first_of(experts)), experts.down_proj
    up[expert] = up[expert][:, wide] if experts.is_transposed else up[expert][wide]
    down[expert] = down[expert][order] if experts.is_transposed else down[expert][:, order]
    if experts.has_bias:
        experts.gate_up_proj_bias[expert] = experts.gate_up_proj_bias[expert][wide]


def copies(permute):
    """Experts 1 and 3 become copies of 0 and 2, their neurons in another order if asked."""

    def change(experts):
        for parameter in experts.parameters():
            parameter[1], parameter[3] = parameter[0], parameter[2]
        if permute:
            order = torch.randperm(24, generator=torch.Generator().manual_seed(3))
            neurons(experts, 1, order)
            neurons(experts, 3, order.flip(0))

    return change


@pytest.mark.parametrize(("model_type", "layout"), LAYOUTS)
@pytest.mark.parametrize("permute", [False, True])
def test_merging_copies_changes_no_bit(toy, tmp_path, model_type, layout, permute):
    path = stored(toy, model_type, layout, tmp_path, copies(permute))
    checkpoint, plan = merge_plan(path)
    write_pruned(checkpoint, plan, tmp_path / "merged")
    write_pruned(checkpoint, plain(plan), tmp_path / "plain")
    one, other = weights_of(tmp_path / "merged"), weights_of(tmp_path / "plain")
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def test_permuted_copies_are_found_by_the_matching_alone(toy, tmp_path, monkeypatch):
    """Negative control: averaged in the order that they are stored in, they make something else."""
    path = stored(toy, "qwen3_moe", "disk", tmp_path, copies(True))
    monkeypatch.setattr("minitron_cli.prune.merge.matching", lambda inner: np.arange(len(inner)))
    checkpoint, plan = merge_plan(path)
    write_pruned(checkpoint, plan, tmp_path / "merged")
    write_pruned(checkpoint, plain(plan), tmp_path / "plain")
    assert difference(logits_of(tmp_path / "merged"), logits_of(tmp_path / "plain")) > 1e-2


@pytest.mark.parametrize(("model_type", "layout"), LAYOUTS)
def test_a_merged_expert_is_the_literal_average(toy, tmp_path, model_type, layout):
    """In memory, where all families look alike: permuted by scipy's assignment, averaged by share, then cut."""
    path = stored(toy, model_type, layout, tmp_path)
    checkpoint, plan = merge_plan(path, expert_ffn=16)
    write_pruned(checkpoint, plan, tmp_path / "merged")
    write_pruned(checkpoint, plain(plan), tmp_path / "plain")
    assert difference(logits_of(tmp_path / "merged"), logits_of(tmp_path / "plain")) > 1e-2
    source, result = load(path), load(tmp_path / "merged")
    for (layer, experts), (_, new) in zip(experts_of(source), experts_of(result), strict=True):
        for stays, goes, share in ((0, 1, 0.75), (2, 3, 0.5)):
            order = torch.from_numpy(linear_sum_assignment(inner_products(experts, stays, goes), maximize=True)[1])
            with torch.no_grad():
                neurons(experts, goes, order)
                for parameter in experts.parameters():
                    parameter[stays] = (1 - share) * parameter[stays] + share * parameter[goes]
                neurons_kept = torch.from_numpy(plan.kept["expert_ffn"][layer])
        for place, expert in enumerate(KEPT):
            neurons(experts, expert, torch.cat([neurons_kept[place], other_than(neurons_kept[place], 24)]))
            down = experts.down_proj[expert]
            down = down[:16] if experts.is_transposed else down[:, :16]
            torch.testing.assert_close(new.down_proj[place], down, rtol=1e-5, atol=1e-6)
            up = getattr(experts, first_of(experts))[expert]
            wide = torch.arange(32) if experts.has_bias else torch.cat([torch.arange(16), torch.arange(24, 40)])
            wide = wide if experts.has_gate else torch.arange(16)
            up = up[:, wide] if experts.is_transposed else up[wide]
            torch.testing.assert_close(getattr(new, first_of(new))[place], up, rtol=1e-5, atol=1e-6)


def other_than(kept, total):
    return torch.from_numpy(np.setdiff1d(np.arange(total), kept.numpy()))


def inner_products(experts, one, other):
    """Neuron against neuron, over all weights that are a neuron's own: (24, 24)."""

    def own(expert):
        up = getattr(experts, first_of(experts))[expert]
        up = up.T if experts.is_transposed else up
        down = experts.down_proj[expert]
        down = down if experts.is_transposed else down.T
        halves = [up[0::2], up[1::2]] if experts.has_bias else up.split(24)
        if experts.has_bias:
            bias = experts.gate_up_proj_bias[expert]
            halves = [*halves, bias[0::2, None], bias[1::2, None]]
        return torch.cat([*halves, down], 1).detach().double()

    return (own(one) @ own(other).T).numpy()


@pytest.mark.parametrize("model_type", SPARSE)
def test_experts_that_stay_alone_keep_every_bit(toy, tmp_path, model_type):
    checkpoint, plan = merge_plan(toy(model_type), share=[1, 0, 1, 0, 1])
    write_pruned(checkpoint, plan, tmp_path / "merged")
    write_pruned(checkpoint, plain(plan), tmp_path / "plain")
    assert weights_of(tmp_path / "merged").keys() == weights_of(tmp_path / "plain").keys()
    for name, tensor in weights_of(tmp_path / "merged").items():
        assert torch.equal(tensor, weights_of(tmp_path / "plain")[name]), name


def test_groups_follow_similarity_and_rank(toy):
    checkpoint = open_checkpoint(toy("mixtral"))
    plan = replace(plan_for(checkpoint, {"expert": 2}), kept={"expert": np.tile([1, 3], (3, 1))})
    similarity = np.tile(np.eye(5), (3, 1, 1))
    similarity[:, 0, 1] = similarity[:, 2, 3] = similarity[:, 4, 1] = 0.5
    tokens = np.tile([10.0, 30.0, 0.0, 5.0, 60.0], (3, 1))
    scores = Scores({"expert": np.tile([0.1, 0.5, 0.2, 0.9, 0.3], (3, 1))})
    found = merged(plan, Routing(similarity, tokens), scores, "m-smoe").merge
    assert found.into[0].tolist() == [0, 0, 1, 1, 0]
    np.testing.assert_allclose(found.share[0], [0.1, 0.3, 0, 1, 0.6])
    found = merged(plan, Routing(similarity, tokens), scores, "nearest").merge
    assert found.into[0].tolist() == [0, 0, 0, 1, 0], "the better half of those that stay takes nothing in"
    nothing = merged(plan, Routing(similarity, 0 * tokens), scores, "m-smoe").merge
    assert nothing.share[0].tolist() == [0, 1, 0, 1, 0], "without a token, what stays is what was kept"


def test_of_each_cluster_the_best_stays():
    """Three of five experts are alike and rank highest: one of them stays, and the best of the pair that is alike."""
    similarity = np.eye(5)
    similarity[np.ix_([0, 2, 4], [0, 2, 4])] = similarity[np.ix_([1, 3], [1, 3])] = 0.9
    np.fill_diagonal(similarity, 1)
    scores = Scores({"expert": np.array([[5.0, 1.0, 7.0, 2.0, 6.0]])})
    found = one_of_each_cluster(scores, Routing(similarity[None], np.ones((1, 5))), 2).values["expert"][0]
    assert sorted(np.argsort(-found)[:2]) == [2, 3]
    assert sorted(np.argsort(-scores.values["expert"][0])[:2]) == [2, 4], "by rank alone two that are alike would stay"
    assert np.argsort(-found)[2] == 4, "the others keep their order"


def test_units_of_every_layout():
    sizes = {"expert_ffn": 3, "hidden": 2}
    values = np.arange(12.0).reshape(6, 2)
    plain_dim, hidden = ((("expert_ffn",), ("expert_ffn",)), (("hidden",),))
    stacked = by_unit(values, (plain_dim, hidden), "expert_ffn", sizes)
    np.testing.assert_array_equal(stacked[1], [2, 3, 8, 9])
    pairs = by_unit(values.T, (hidden, (("expert_ffn", 2),)), "expert_ffn", sizes)
    np.testing.assert_array_equal(np.sort(pairs[1]), np.sort(values[2:4].ravel()))
    assert matching(np.array([[0, 1.0], [1.0, 0.5]])).tolist() == [1, 0]


def test_a_plan_checks_its_merge(toy):
    _, plan = merge_plan(toy("mixtral"))
    for into, share, why in (
        ([0, 0, 1, 1, 3], SHARE, "into another"),
        ([1, 0, 0, 1, 2], SHARE, "into another"),
        (INTO, [-1, *SHARE[1:]], "not shares"),
        (INTO[:4], SHARE, "merged by arrays"),
    ):
        wrong = Merge(np.tile(into, (3, 1)), np.tile(share, (3, 1)))
        assert why in plan_problems(plan.source, plan.target, plan.kept, None, wrong)[0]
    assert Plan(plan.source, plan.target, plan.kept, None, plan.merge)


@pytest.fixture
def text(tmp_path):
    file = tmp_path / "text.jsonl"
    file.write_text("".join(json.dumps({"text": f"story {i}: the old cat sat"}) + "\n" for i in range(40)))
    return str(file)


@pytest.mark.parametrize("method", MERGES[1:])
def test_the_command_merges_and_verifies(toy, text, tmp_path, method, capsys):
    line = [
        "prune",
        str(toy("qwen3_moe")),
        "--experts",
        "3",
        "--expert-merge",
        method,
        "--data",
        text,
        "--samples",
        "8",
    ]
    line += ["--seq-len", "16", "--check", "-o", str(tmp_path / "out")]
    assert minitron([*line, "--dry-run"]) == 0
    assert not (tmp_path / "out").exists()
    assert minitron(line) == 0
    assert "merged" in capsys.readouterr().err
    plan = read_plan(tmp_path / "out")
    assert plan.merge is not None
    assert (plan.merge.into >= 0).all()
    np.testing.assert_allclose([plan.merge.share[plan.merge.into == i].sum() for i in range(3)], [3, 3, 3])
    found = verify(tmp_path / "out", str(toy("qwen3_moe")), load=False)
    assert not found.problems
    assert logits_of(tmp_path / "out", toy_ids(1, 4)).isfinite().all()


def test_what_cannot_be_merged_is_refused(toy, text, tmp_path, capsys):
    model = str(toy("qwen3_moe"))
    for flags, why in (
        (["--expert-ffn", "16", "--expert-merge", "m-smoe"], "none do"),
        (["--experts", "3", "--expert-merge", "mean"], "unknown"),
        (["--experts", "3", "--expert-merge", "m-smoe", "--compensate", "least-squares"], "does not go with"),
    ):
        assert minitron(["prune", model, *flags, "-o", str(tmp_path / "out")]) == 1
        assert why in capsys.readouterr().err
    assert minitron(["importance", model, "--metric", "random", "-o", str(tmp_path / "s")]) == 0
    line = ["prune", model, "--experts", "3", "--expert-merge", "m-smoe", "--scores", str(tmp_path / "s"), "--dry-run"]
    assert minitron(line) == 1
    assert "router logits" in capsys.readouterr().err


def test_an_expert_that_is_not_finite_is_not_averaged_in(toy, tmp_path):
    path = stored(toy, "qwen3_moe", "disk", tmp_path)
    weights = weights_of(path)
    weights["model.layers.1.mlp.experts.3.up_proj.weight"][2, 5] = torch.nan
    save_file(weights, path / "model.safetensors", {"format": "pt"})
    checkpoint, plan = merge_plan(path)
    with pytest.raises(MinitronError, match="not finite"):
        write_pruned(checkpoint, plan, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert Merging(checkpoint, plan).order(0, 0, 1).shape == (24,)


def test_the_dry_run_counts_the_matching(toy):
    """Two experts go in each of three layers; 24 neurons of 3 x 48 weights."""
    checkpoint = open_checkpoint(toy("mixtral"))
    source, target = checkpoint.shape, checkpoint.shape.with_(expert=3)
    seconds, held = merge_cost(source, target)
    assert seconds == pytest.approx(6 * (2 * 24 * 24 * 144 / 1e11 + 5e-11 * 24**3 + 12 * 24 * 144 / 1e9))
    assert held == 8 * 24 * 144 + 24 * 24 * 24
