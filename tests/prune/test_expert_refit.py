"""Refitted experts: projections are those of a dense least-squares solution, and nothing else changes."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from minitron_cli.__main__ import run as minitron
from minitron_cli.chain.estimate import estimate
from minitron_cli.checkpoint.architecture import stored_weights
from minitron_cli.checkpoint.atomic import MANIFEST
from minitron_cli.checkpoint.moments_file import open_moments
from minitron_cli.checkpoint.provenance import file_digest, read_manifest
from minitron_cli.checkpoint.reader import open_checkpoint
from minitron_cli.checkpoint.seal import sealed
from minitron_cli.checkpoint.tensors import read_tensor
from minitron_cli.errors import MinitronError
from minitron_cli.families import family_of
from minitron_cli.hf.stream import step
from minitron_cli.prune import refit_pass
from minitron_cli.prune.compensate import Compensation
from minitron_cli.prune.directions import by_directions
from minitron_cli.prune.expert_refit import RIDGES, ExpertRefit, groups, refit_cost
from minitron_cli.prune.expert_sums import Sums
from minitron_cli.prune.refit_pass import refit_experts
from minitron_cli.prune.request import parse_together
from minitron_cli.prune.verify import verify
from minitron_cli.prune.write import write_pruned
from minitron_cli.spec.plan import Plan
from minitron_cli.spec.recipe import Recipe, Step
from tests.prune.cutting import load, logits_of, plan_for, sizes_for
from tests.prune.test_compensate import measure
from tests.prune.test_merge import LAYOUTS, experts_of, first_of, merge_plan, stored
from tests.toys import toy_ids
from tests.wrapped import WRAPPED, make_wrapped

ROWS = np.random.default_rng(5).integers(0, 97, (6, 20))
RIDGE = 1e-2
LAYOUTS = [(name, layout) for name, layout in LAYOUTS if not family_of(name).whole]


def how(together=None, ridge=RIDGE, rows=ROWS):
    return ExpertRefit(together, ridge, rows, {"kind": "random"})


def refit(source, plan, output, *more):
    write_pruned(source, plan, output, refit=how(*more))
    return read_manifest(output)["expert_refit"]


@torch.no_grad()
def seen(model):
    """What each sparse layer's experts read, chose and weighed, {layer: ..}, and the states after every layer."""
    mixtures, states, handles = {}, {}, []
    for layer, experts in experts_of(model):

        def keep(module, args, output, layer=layer):
            mixtures[layer] = SimpleNamespace(x=args[0].double(), index=args[1], weights=args[2].double())

        handles.append(experts.register_forward_hook(keep))
    for layer, block in enumerate(model.get_decoder().layers):

        def keep_states(module, args, output, layer=layer):
            output = output[0] if isinstance(output, tuple) else output
            states[layer] = output.flatten(0, 1).double().numpy()

        handles.append(block.register_forward_hook(keep_states))
    model(torch.from_numpy(ROWS), use_cache=False)
    for handle in handles:
        handle.remove()
    return mixtures, states


@torch.no_grad()
def features(experts, mixture):
    """Gated inputs of all down projections side by side, literally: (token, expert x inner) float64."""
    columns = []
    for expert in range(len(experts.down_proj)):
        name = first_of(experts)
        up = getattr(experts, name)[expert]
        x = mixture.x @ (up if experts.is_transposed else up.T).double()
        x = x + getattr(experts, f"{name}_bias")[expert].double() if experts.has_bias else x
        inner = experts._apply_gate(x) if experts.has_gate else experts.act_fn(x)
        columns.append(inner * (mixture.weights * (mixture.index == expert)).sum(-1, keepdim=True))
    return torch.cat(columns, 1).numpy()


def literal(source_path, cut_path, plan, together=None):
    """The cut model with each mixture's projections solved by numpy's lstsq, one layer after the other."""
    wanted, student = seen(load(source_path))[1], load(cut_path)
    gain = getattr(student.config, "residual_multiplier", 1.0)
    for layer, experts in experts_of(student):
        inner = experts.down_proj.shape[1 if experts.is_transposed else 2]
        for some in groups(len(experts.down_proj), together):
            mixtures, states = seen(student)
            target = wanted[plan.source_layer(layer)]
            target = target[:, plan.kept["hidden"]] if "hidden" in plan.kept else target
            f = gain * features(experts, mixtures[layer])[:, some.start * inner : some.stop * inner]
            penalty = np.sqrt(RIDGE * np.square(f).sum(0).mean()) * np.eye(f.shape[1])
            missing = np.concatenate([target - states[layer], np.zeros((len(penalty), target.shape[1]))])
            change = np.linalg.lstsq(np.concatenate([f, penalty]), missing, rcond=None)[0]
            with torch.no_grad():
                for expert, own in zip(some, torch.from_numpy(change).float().split(inner)):
                    experts.down_proj[expert] += own if experts.is_transposed else own.T
    return student


def check_literal(source_path, plan, tmp_path, together=None):
    source = open_checkpoint(source_path)
    write_pruned(source, plan, tmp_path / "plain")
    record = refit(source, plan, tmp_path / "refit", together)
    expected, found = literal(source_path, tmp_path / "plain", plan, together), load(tmp_path / "refit")
    before = dict(load(tmp_path / "plain").named_parameters())
    for (name, one), other in zip(found.named_parameters(), expected.parameters(), strict=True):
        if name.endswith("down_proj") and one.dim() == 3:
            assert (one - before[name]).abs().max() > 1e-3, "negative control: it was another before"
            torch.testing.assert_close(one, other, rtol=1e-3, atol=2e-4)
        else:
            assert torch.equal(one, before[name]), name
    assert all(ratio < 1 for ratio in record["reconstruction"]["hidden states"].values())


@pytest.mark.parametrize(("model_type", "layout"), LAYOUTS)
def test_projections_are_the_dense_solution(toy, tmp_path, model_type, layout):
    path = stored(toy, model_type, layout, tmp_path)
    check_literal(path, plan_for(open_checkpoint(path), {"expert": 3}), tmp_path)


@pytest.mark.parametrize("model_type", ["qwen2_moe", "qwen3_moe"])
def test_with_every_other_axis_cut_too(toy, tmp_path, model_type):
    """Layers, hidden channels, heads, neurons, shared experts and experts a token; the layers that stay are matched."""
    path = toy(model_type)
    sizes = {**sizes_for(model_type, "all"), "expert": 3, "expert_active": 1}
    check_literal(path, plan_for(open_checkpoint(path), sizes), tmp_path)


def test_with_dense_layers_among_them(toy, tmp_path):
    path = toy("qwen3_moe", mlp_only_layers=[1])
    check_literal(path, plan_for(open_checkpoint(path), {"expert": 3}), tmp_path)


@pytest.mark.parametrize("together", [1, 2])
def test_some_at_a_time(toy, tmp_path, together):
    path = toy("mixtral")
    check_literal(path, plan_for(open_checkpoint(path), {"expert": 3}), tmp_path, together)


def test_of_merged_experts(toy, tmp_path):
    source, plan = merge_plan(toy("mixtral"))
    check_literal(source.path, plan, tmp_path)


@pytest.mark.parametrize("model_type", ["mixtral", "gpt_oss"])
def test_where_nothing_is_cut_nothing_changes(toy, tmp_path, model_type):
    path = shutil.copytree(toy(model_type), tmp_path / "same")
    source = open_checkpoint(toy(model_type))
    _, files = refit_experts(source, path, Plan(source.shape, source.shape, {}), how(), lambda text: None)
    assert files == {"model.safetensors"}
    before, after = load_file(source.path / "model.safetensors"), load_file(path / "model.safetensors")
    for name, tensor in after.items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=1e-6)


def test_new_text_is_predicted_more_as_the_source_does(toy, tmp_path):
    """On rows that were not calibrated on, by squared distance of logits."""
    source = open_checkpoint(toy("mixtral"))
    plan = plan_for(source, {"expert": 3})
    write_pruned(source, plan, tmp_path / "plain")
    rows = np.random.default_rng(6).integers(0, 97, (64, 20))
    write_pruned(source, plan, tmp_path / "refit", refit=how(rows=rows))
    ids = toy_ids(8, 20, seed=9)
    wanted = logits_of(source.path, ids)
    lost = {name: (logits_of(tmp_path / name, ids) - wanted).square().mean() for name in ("plain", "refit")}
    assert lost["refit"] < 0.85 * lost["plain"]


def test_a_quantised_source_gives_the_bytes_of_its_values(pair, tmp_path):
    places = pair("mxfp4")
    sources = {
        "quantised": open_checkpoint(places / "quantised", "bfloat16"),
        "plain": open_checkpoint(places / "plain"),
    }
    found = []
    for name, source in sources.items():
        refit(source, plan_for(source, {"expert": source.shape["expert"] - 1}), tmp_path / name)
        found.append(load_file(tmp_path / name / "model.safetensors"))
    for name, tensor in found[0].items():
        assert torch.equal(tensor, found[1][name]), name


def test_the_ridge_is_the_best_on_what_was_not_solved_on():
    """Chosen by hand: solved on the first half, judged on the second; where nothing helps there, nothing changes."""
    generator = torch.Generator().manual_seed(0)

    def half(tokens, noise):
        x = torch.randn(tokens, 6, generator=generator, dtype=torch.float64)
        return x, x @ torch.ones(6, 2, dtype=torch.float64) + noise * torch.randn(tokens, 2, generator=generator)

    for noise in (0.1, 3.0, 300.0):
        (x0, t0), (x1, t1) = half(12, noise), half(400, noise)
        sums = Sums([0, 1], (x0.T @ x0, x1.T @ x1), (x0.T @ t0, x1.T @ t1))
        errors = []
        for ridge in RIDGES[:-1]:
            penalty = np.sqrt(ridge * float(x0.square().sum(0).mean())) * np.eye(6)
            change = np.linalg.lstsq(np.concatenate([x0, penalty]), np.concatenate([t0, np.zeros((6, 2))]), rcond=None)
            errors.append(float((t1 - x1 @ change[0]).square().sum()))
        best = int(np.argmin([*errors, float(t1.square().sum())]))
        change, ridge = sums.solve(None)
        assert ridge == (None if np.isinf(RIDGES[best]) else RIDGES[best])
        assert (change is None) == np.isinf(RIDGES[best])
    assert change is None, "the last text is noise"


def test_what_goes_on_otherwise_than_by_a_factor_is_refused(toy, tmp_path, monkeypatch):
    source = open_checkpoint(toy("mixtral"))
    monkeypatch.setattr(refit_pass, "step", lambda *given: step(*given).tanh())
    with pytest.raises(MinitronError, match="other than by a factor"):
        refit(source, plan_for(source, {"expert": 3}), tmp_path / "out")


@pytest.mark.parametrize("model_type", [name for name in WRAPPED if "moe" in name])
def test_in_a_model_of_text_and_images(tmp_path, model_type):
    """The text model comes to the same within the whole, whose experts may be stored transposed, as by itself."""
    make_wrapped(model_type, tmp_path / "source")
    whole = open_checkpoint(tmp_path / "source")
    plan = plan_for(whole, {"expert": 3})
    for name, source in (("whole", whole), ("text", whole.unwrapped())):
        refit(source, plan, tmp_path / name)
    one, other = open_checkpoint(tmp_path / "whole"), open_checkpoint(tmp_path / "text")
    for name in other.matches:
        assert torch.equal(read_tensor(one.tensors[name]), read_tensor(other.tensors[name])), name
    assert not verify(tmp_path / "whole", str(tmp_path / "source"), load=False).problems


def test_with_directions_in_the_place_of_channels(toy, tmp_path):
    """Rotated, compensated, then refitted: less is left of the distance than before."""
    source = open_checkpoint(toy("mixtral"))
    moments = open_moments(measure(toy("mixtral"), tmp_path / "scores", ROWS))
    compensation = Compensation(moments)
    plan = by_directions(source, plan_for(source, {"expert": 3}), 36, compensation)
    write_pruned(source, plan, tmp_path / "out", compensation=compensation, refit=how())
    left = read_manifest(tmp_path / "out")["expert_refit"]["reconstruction"]["hidden states"]
    assert all(ratio < 0.9 for ratio in left.values())


@pytest.fixture
def text(tmp_path):
    file = tmp_path / "text.jsonl"
    file.write_text("".join(json.dumps({"text": f"story {i}: the old cat sat"}) + "\n" for i in range(60)))
    return str(file)


@pytest.fixture
def line(toy, text, tmp_path):
    words = ["prune", str(toy("qwen3_moe")), "--experts", "3", "--expert-merge", "m-smoe", "--expert-refit", "2"]
    return [*words, "--data", text, "--samples", "16", "--seq-len", "16"]


def test_the_command_refits_and_verifies(toy, line, tmp_path, capsys):
    out = tmp_path / "out"
    assert minitron([*line, "-o", str(out), "--dry-run"]) == 0
    assert not out.exists()
    assert "solves for" not in capsys.readouterr().err
    assert minitron([*line, "--samples", "2", "-o", str(out), "--dry-run"]) == 0
    assert "solves for 48 inputs at a time on 32 tokens" in capsys.readouterr().err
    assert minitron([*line, "-o", str(out), "--check"]) == 0
    said = capsys.readouterr().err
    assert "layer 0: 0." in said
    assert "refitted" in said.partition("nats per token")[2]
    manifest = read_manifest(out)
    assert manifest["options"]["expert-refit"] == "2"
    assert manifest["expert_refit"]["data"]["samples"] == 16
    found = verify(out, str(toy("qwen3_moe")))
    assert not found.problems
    assert "taken as they are" in found.notes[0]
    again = [*line, "--scores", str(tmp_path / "out.scores.safetensors"), "-o", str(tmp_path / "again")]
    assert minitron(again) == 0
    assert read_manifest(tmp_path / "again")["files"]["model.safetensors"] == manifest["files"]["model.safetensors"]


def test_states_on_disk_give_the_same_bytes(toy, tmp_path, monkeypatch):
    source = open_checkpoint(toy("mixtral"))
    plan = plan_for(source, {"expert": 3, "layer": 2})
    for name in ("memory", "disk"):
        refit(source, plan, tmp_path / name)
        monkeypatch.setattr(refit_pass, "free_host_memory", lambda: 0)
    one, other = (read_manifest(tmp_path / name)["files"] for name in ("memory", "disk"))
    assert one == other
    assert {path.name for path in (tmp_path / "disk").iterdir()} == {*other, MANIFEST}


def test_a_recipe_counts_the_text(toy):
    config = json.loads((toy("mixtral") / "config.json").read_text())
    options = {"experts": 3, "expert-refit": "all", "samples": 10, "seq-len": 20}
    inputs = {"model": ("{m}",), "scores": ("s",), "data": ("text",)}
    (found,) = estimate(Recipe("r", "", {}, (Step("cut", "prune", inputs, options),)), {"{m}": config})
    assert found.tokens == 200
    assert found.flops == cost_of(open_checkpoint(toy("mixtral")), 3, None, 10, 20).flops


def test_what_was_not_refitted_is_derived_again(toy, line, tmp_path):
    out = tmp_path / "out"
    assert minitron([*line, "-o", str(out)]) == 0
    weights = load_file(out / "model.safetensors")
    weights["model.layers.1.mlp.gate.weight"][0, 0] += 1
    save_file(weights, out / "model.safetensors", {"format": "pt"})
    manifest = json.loads((out / MANIFEST).read_text())
    manifest["files"]["model.safetensors"] = file_digest(out / "model.safetensors")
    manifest.pop("sha256", None)
    (out / MANIFEST).write_text(json.dumps(sealed(manifest)))
    assert "does not follow from the source" in verify(out, str(toy("qwen3_moe")), load=False).problems[0]


def test_what_cannot_be_refitted_is_refused(toy, text, tmp_path, capsys, monkeypatch):
    out = ["-o", str(tmp_path / "out")]
    data = ["--data", text, "--samples", "16", "--seq-len", "16"]
    for model, flags, why in (
        ("qwen3_moe", ["--experts", "3", "--expert-refit", "all"], "there is none"),
        ("qwen3_moe", ["--experts", "3", "--expert-refit", "some", *data], "not a number of experts"),
        ("qwen3_moe", ["--experts", "3", "--expert-refit", "0", *data], "not a number of experts"),
        ("qwen3_moe", ["--experts", "3", "--expert-refit", "all", "--vocab", "80", *data], "do not go together"),
        ("qwen3_moe", ["--experts", "1", "--expert-refit", "all", *data], "leaves a dense model"),
        ("llama", ["--ffn", "56", "--expert-refit", "all", *data], "have no experts"),
        ("qwen3_moe", ["--experts", "3", "--expert-refit", "all", *data[:2], "--samples", "9999"], "too little"),
    ):
        for mode in ([], ["--dry-run"]):
            assert minitron(["prune", str(toy(model)), *flags, *out, *mode]) == 1
            assert why in capsys.readouterr().err, flags
    two = cost_of(open_checkpoint(toy("qwen3_moe")), 4, 2, 16, 16)
    monkeypatch.setattr(refit_pass, "free_memory", lambda device: two.solution + two.blocks)
    assert minitron(["prune", str(toy("qwen3_moe")), "--experts", "4", "--expert-refit", "all", *data, *out]) == 1
    assert "add --expert-refit 2" in capsys.readouterr().err
    assert not [path for path in tmp_path.iterdir() if path.name != "text.jsonl"], "nothing was measured before"


def test_a_ridge_of_nothing_may_not_solve(toy, tmp_path):
    """Fewer tokens than inputs: G has no inverse."""
    source = open_checkpoint(toy("mixtral"))
    with pytest.raises(MinitronError, match="positive definite"):
        write_pruned(source, plan_for(source, {"expert": 3}), tmp_path / "out", refit=how(None, 0.0, ROWS[:1]))
    assert not (tmp_path / "out").exists()


def test_the_cost_is_that_of_shapes(toy):
    source = open_checkpoint(toy("mixtral"))
    cost = cost_of(source, 4, 2, 10, 20)
    assert cost.solution == 3 * 8 * 48 * (48 + 48)
    assert cost.states == 4 * 200 * 2 * 48
    assert [list(group) for group in groups(5, 2)] == [[0, 1], [2, 3], [4]]
    assert [parse_together(text) for text in ("none", "all", "7")] == [0, None, 7]
    assert cost_of(source, 4, 2, 20, 20).flops > cost.flops
    assert cost_of(source, 4, None, 10, 20).solution > cost.solution


def cost_of(source, experts, together, samples, seq_len):
    weights = tuple(stored_weights(source))
    return refit_cost(weights, source.shape, source.shape.with_(expert=experts), together, samples, seq_len)
