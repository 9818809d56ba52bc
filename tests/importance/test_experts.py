"""What ranks whole experts, against literal formulas: one token and one expert at a time."""

import json

import numpy as np
import pytest
import torch

from minitron_cli.checkpoint.reader import open_checkpoint
from minitron_cli.checkpoint.scores_file import read_scores
from minitron_cli.errors import MinitronError
from minitron_cli.hf.hooks import find_sites
from minitron_cli.hf.readers import EXPERT_LOGITS
from minitron_cli.hf.samples import Samples
from minitron_cli.importance import forward
from minitron_cli.importance.aggregate import EXPERT_SCORES, Aggregation, to_scores
from minitron_cli.importance.forecast import pass_cost
from minitron_cli.importance.options import Options
from minitron_cli.importance.recorder import Recorder
from minitron_cli.importance.run import measure
from tests.importance import literal
from tests.prune.cutting import load
from tests.toys import SPARSE, SPARSE_THROUGHOUT, toy_ids

CPU = torch.device("cpu")
FAMILIES = list(SPARSE_THROUGHOUT)


def run(path, samples, batch_size=2, damage=True):
    checkpoint, model = open_checkpoint(path), load(path)
    sites = find_sites(checkpoint, model, CPU)
    recorder = Recorder(sites, damage=damage)
    forward.run(model, sites, samples.batches(batch_size, CPU), recorder)
    return recorder.raw(), recorder.rows, checkpoint


def scores_of(path, samples, how):
    raw, rows, checkpoint = run(path, samples)
    return to_scores(raw, rows, checkpoint.family, checkpoint.shape, Aggregation(expert=how))["expert"]


def routing(config, logits):
    """(index, weights) of one token, as the family's paper has it: logits (expert,) float64."""
    chosen = torch.topk(logits, config.num_experts_per_tok).indices
    if config.model_type == "gpt_oss":
        return chosen, torch.softmax(logits[chosen], 0)
    weights = torch.softmax(logits, 0)[chosen]
    normalised = config.model_type == "mixtral" or config.norm_topk_prob
    return chosen, weights / weights.sum() if normalised else weights


def literal_scores(model, rows, spans=None):
    """{score: (layer, expert)} and the Gram matrices of router logits (layer, expert, expert)."""
    config = model.config
    found = {name: [] for name in EXPERT_SCORES[1:]}
    grams = []
    for layer, block in enumerate(model.get_decoder().layers):
        experts = block.mlp.experts
        router = block.mlp.router if config.model_type == "gpt_oss" else block.mlp.gate
        caught = literal.catch(model, rows, spans)
        x = torch.from_numpy(np.concatenate([one[layer, "mlp"] for one in caught]))
        bias = router.bias.double() if hasattr(router, "bias") else 0
        logits = (x @ router.weight.double().T + bias).detach()
        grams.append((logits.T @ logits).numpy())
        num = len(router.weight)
        function = [(literal._gpt_oss if hasattr(experts, "alpha") else literal._gated)(experts, e) for e in range(num)]
        outputs = torch.stack([torch.stack([out(into(t)) for into, out in function]) for t in x]).detach()
        tokens, mass, norm, weighted, squares = (np.zeros(num) for _ in range(5))
        for t, logit in enumerate(logits):
            index, weights = routing(config, logit)
            whole = (weights[:, None] * outputs[t, index]).sum(0)
            for e, w in zip(index.tolist(), weights.tolist()):
                size = float(outputs[t, e].norm())
                tokens[e], mass[e], norm[e], weighted[e] = (
                    tokens[e] + 1, mass[e] + w, norm[e] + size, weighted[e] + w * size
                )  # fmt: skip
                without = logit.clone()
                without[e] = -torch.inf
                other, new = routing(config, without)
                squares[e] += float((whole - (new[:, None] * outputs[t, other]).sum(0)).square().sum())
        found["frequency"].append(tokens / tokens.sum())
        found["mass"].append(mass / mass.sum())
        found["reap"].append(weighted / np.maximum(tokens, 1))
        found["output-norm"].append(norm / np.maximum(tokens, 1))
        found["damage"].append(np.sqrt(squares / len(x)))
    return {name: np.array(values) for name, values in found.items()}, np.array(grams)


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_the_formulas(toy, family):
    ids = toy_ids(3, 7).numpy()
    raw, rows, checkpoint = run(toy(family), Samples(ids))
    wanted, grams = literal_scores(load(toy(family)), ids)
    for how, values in wanted.items():
        ours = to_scores(raw, rows, checkpoint.family, checkpoint.shape, Aggregation(expert=how))["expert"]
        np.testing.assert_allclose(ours, values, rtol=2e-5, atol=1e-6 * values.max(), err_msg=how)
    assert np.ptp(wanted["damage"]) > 1e-3
    np.testing.assert_allclose(np.moveaxis(raw[EXPERT_LOGITS].sum(0), 1, 0), grams, rtol=2e-5, atol=1e-4)


def sparse_of(model):
    """Layer -> its experts."""
    return {
        layer: module
        for layer, block in enumerate(model.get_decoder().layers)
        for module in block.modules()
        if "down_proj" in module._parameters
    }


@pytest.mark.parametrize("family", SPARSE)
def test_scores_follow_what_transformers_routes(toy, family):
    """Whatever the router: from the tokens, experts and weights that transformers hands to the experts."""
    ids, model = toy_ids(3, 7).numpy(), load(toy(family))
    calls = {layer: [] for layer in sparse_of(model)}
    for layer, experts in sparse_of(model).items():
        experts.register_forward_pre_hook(lambda module, args, found=calls[layer]: found.append(args))
    with torch.no_grad():
        model(torch.from_numpy(ids))
    raw, rows, checkpoint = run(toy(family), Samples(ids), damage=False)
    ours = {how: to_scores(raw, rows, checkpoint.family, checkpoint.shape, Aggregation(expert=how))["expert"]
            for how in ("frequency", "mass", "reap", "output-norm")}  # fmt: skip
    assert calls
    for layer, experts in sparse_of(model).items():
        ((hidden, index, weights),) = calls[layer]
        tokens, mass, norm, weighted = (np.zeros(checkpoint.shape["expert"]) for _ in range(4))
        for x, chosen, gates in zip(hidden.double(), index.tolist(), weights.tolist()):
            for e, gate in zip(chosen, gates):
                into, out = literal.halves(experts, e)
                size = float(out(into(x)).detach().norm())
                tokens[e], mass[e], norm[e], weighted[e] = (
                    tokens[e] + 1, mass[e] + gate, norm[e] + size, weighted[e] + gate * size
                )  # fmt: skip
        some = np.maximum(tokens, 1)
        wanted = {"frequency": tokens / tokens.sum(), "mass": mass / mass.sum(), "reap": weighted / some,
                  "output-norm": norm / some}  # fmt: skip
        for how, values in wanted.items():
            np.testing.assert_allclose(ours[how][layer], values, rtol=1e-4, atol=1e-6, err_msg=f"{how}, layer {layer}")


@pytest.mark.parametrize("family", ["glm4_moe", "deepseek_v3", "ernie4_5_moe", "nemotron_h"])
def test_damage_needs_a_choice_by_score_alone(toy, text, tmp_path, family):
    options = Options((text,), samples=4, seq_len=16, separator="none", expert_damage=True)
    with pytest.raises(MinitronError, match="a bias corrects this router's choice"):
        measure(toy(family), options, tmp_path / "s")


def test_padding_changes_nothing(toy):
    ids = toy_ids(3, 9).numpy()
    spans = ((0, 9), (2, 9), (0, 4))
    wanted, _ = literal_scores(load(toy("qwen3_moe")), ids, spans)
    for how, values in wanted.items():
        np.testing.assert_allclose(scores_of(toy("qwen3_moe"), Samples(ids, spans), how), values, rtol=1e-4, atol=1e-6)


def test_with_as_many_experts_as_are_active_dropping_leaves_the_others(toy):
    path = toy("mixtral", num_local_experts=2)
    found = scores_of(path, Samples(toy_ids(2, 5).numpy()), "damage")
    assert np.isfinite(found).all()
    assert (found > 0).all()


@pytest.fixture
def text(tmp_path):
    file = tmp_path / "text.jsonl"
    file.write_text("".join(json.dumps({"text": f"story {i}: the old cat sat"}) + "\n" for i in range(40)))
    return str(file)


def test_another_score_needs_no_other_pass_and_streams(toy, text, tmp_path):
    options = {"data": (text,), "samples": 4, "seq_len": 16, "separator": "none", "batch_size": 2}
    output = tmp_path / "s"
    measure(toy("mixtral"), Options(**options, mode="stream"), output)
    reap = measure(toy("mixtral"), Options(**options, expert_score="reap"), output)
    assert reap.made == "aggregated"
    assert measure(toy("mixtral"), Options(**options, expert_score="reap"), output).made == "found"
    whole = measure(toy("mixtral"), Options(**options, expert_score="damage", mode="resident"), output)
    assert whole.made == "measured"
    streamed = measure(toy("mixtral"), Options(**options, expert_score="damage", mode="stream"), tmp_path / "t")
    np.testing.assert_array_equal(whole.scores.values["expert"], streamed.scores.values["expert"])
    assert read_scores(output)[0].provenance["expert_score"] == "damage"


def test_experts_that_no_token_reached_are_named(toy, text, tmp_path):
    from safetensors.torch import load_file, save_file

    path = tmp_path / "m"
    path.mkdir()
    for file in toy("qwen3_moe").iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    weights = load_file(path / "model.safetensors")
    weights["model.layers.1.mlp.gate.weight"][3] = 0
    rest = weights["model.layers.1.mlp.gate.weight"]
    norm = weights["model.layers.1.post_attention_layernorm.weight"]
    norm[:] = 0
    norm[0] = 1
    rest[:, 0] = 0.0
    weights["model.layers.1.mlp.gate.weight"] = rest  # logits are all equal: ties go to the first
    save_file(weights, path / "model.safetensors", {"format": "pt"})
    options = Options(data=(text,), samples=4, seq_len=16, separator="none", expert_score="frequency")
    found = measure(path, options, tmp_path / "s").scores
    lost = found.provenance["unrouted"]["1"]
    assert lost == np.flatnonzero(found.values["expert"][1] == 0).tolist()
    assert len(lost) == 3


def test_what_has_no_experts_is_refused(toy, text, tmp_path):
    with pytest.raises(MinitronError, match="no experts"):
        measure(toy("llama"), Options(data=(text,), expert_damage=True), tmp_path / "s")
    with pytest.raises(MinitronError, match="no forward passes"):
        Options(metric="magnitude", expert_score="reap")


def test_a_dry_run_counts_what_damage_adds(toy):
    """Two experts a token once more: three matrices of 24 x 48 each, in three layers."""
    checkpoint = open_checkpoint(toy("mixtral"))
    plain, with_damage = (
        pass_cost(checkpoint, Options(data=("x",), samples=2, seq_len=8, expert_damage=asked), "m") for asked in (0, 1)
    )
    assert with_damage[1] - plain[1] == 16 * 2 * 3 * 2 * 3 * 24 * 48
