"""Units that were planted: dead ones rank last, dominant ones first, whatever the aggregation."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from minitron_cli.checkpoint.reader import open_checkpoint
from minitron_cli.hf.samples import Samples
from minitron_cli.importance.aggregate import Aggregation, to_scores
from minitron_cli.importance.baselines import magnitude_scores, random_scores, wanda_scores
from tests.importance.test_exact import PAIRS, run
from tests.toys import toy_ids

DEAD, STRONG = 5, 7


@pytest.fixture(scope="module")
def planted(toy, tmp_path_factory):
    """A llama toy: neuron and hidden channel 5 are silent, 7 are loud; layer 1 does nothing."""
    path = tmp_path_factory.mktemp("planted")
    model = AutoModelForCausalLM.from_pretrained(toy("llama")).eval()
    with torch.no_grad():
        for layer in model.model.layers:
            for norm in (layer.input_layernorm, layer.post_attention_layernorm):
                norm.weight[DEAD], norm.weight[STRONG] = 0.0, 40.0
            layer.mlp.up_proj.weight[DEAD], layer.mlp.up_proj.weight[STRONG] = (
                0.0,
                30 * layer.mlp.up_proj.weight[STRONG],
            )
        idle = model.model.layers[1]
        idle.mlp.down_proj.weight.zero_()
        idle.self_attn.o_proj.weight.zero_()
    model.save_pretrained(path)
    return run(path, Samples(toy_ids(6, 12).numpy())), path


@pytest.mark.parametrize("pair", PAIRS)
def test_activation(planted, pair):
    (raw, rows, checkpoint), _ = planted
    scores = to_scores(raw, rows, checkpoint.family, checkpoint.shape, Aggregation(*pair))
    assert scores["hidden"].argmin() == DEAD
    assert scores["hidden"].argmax() == STRONG
    assert (scores["ffn"].argmin(-1) == DEAD).all()
    assert (scores["ffn"].argmax(-1) == STRONG).all()
    assert scores["layer"].argmin() == 1
    assert abs(scores["layer"][1]) < 1e-6


def test_wanda_and_magnitude_and_chance(planted):
    (raw, rows, checkpoint), _ = planted
    wanda = wanda_scores(checkpoint, raw, rows, Aggregation("l2", "l2"))
    assert wanda["hidden"].argmin() == DEAD
    assert wanda["ffn"][0].argmin() == DEAD
    assert (wanda["ffn"][1] == 0).all()  # the idle layer's down projection is zero
    magnitude = magnitude_scores(checkpoint)
    assert magnitude["ffn"][0].argmax() == STRONG
    one, two = random_scores(checkpoint, 1), random_scores(checkpoint, 2)
    assert one.keys() == magnitude.keys() == {"hidden", "ffn", "head", "layer"}
    assert np.abs(one["hidden"] - two["hidden"]).max() > 0.1
    np.testing.assert_array_equal(one["hidden"], random_scores(checkpoint, 1)["hidden"])


def test_heads(toy, tmp_path):
    """A head whose values are zero is silent at the output projection's input; heads 0 to 2 share KV group 0."""
    model = AutoModelForCausalLM.from_pretrained(toy("llama")).eval()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.v_proj.weight[:10] = 0.0
    model.save_pretrained(tmp_path)
    raw, rows, checkpoint = run(tmp_path, Samples(toy_ids(4, 12).numpy()))
    head = to_scores(raw, rows, checkpoint.family, checkpoint.shape)["head"]
    assert (head[:, :3] == 0).all()
    assert (head[:, 3:] > 0).all()


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "phi3", "mixtral", "qwen3_moe", "gpt_oss"])
def test_baselines_are_their_formulas(toy, family):
    """Against weights taken from the model in memory, unit by unit."""
    checkpoint = open_checkpoint(toy(family))
    model = AutoModelForCausalLM.from_pretrained(toy(family)).eval().requires_grad_(False)
    shape, found = checkpoint.shape, magnitude_scores(checkpoint)
    layers = model.get_decoder().layers
    total = sum(
        float(p.double().square().sum()) for n, p in layers[2].named_parameters() if p.dim() > 1 and "bias" not in n
    )
    np.testing.assert_allclose(found["layer"][2], total**0.5, rtol=1e-6)
    raw, rows, _ = run(toy(family), Samples(toy_ids(3, 8).numpy()))
    wanda = wanda_scores(checkpoint, raw, rows, Aggregation("l2", "l2"))
    plain = to_scores(raw, rows, checkpoint.family, shape, Aggregation("l2", "l2"))
    if "expert" in shape:
        experts = layers[1].mlp.experts
        up, down = experts.gate_up_proj[2].double(), experts.down_proj[2].double()
        if family == "gpt_oss":  # transposed, and columns [g0 u0 g1 u1 ...]
            order = [*range(0, 2 * shape["expert_ffn"], 2), *range(1, 2 * shape["expert_ffn"], 2)]
            up, down = up.T[order], down.T
        rows_of = [up[4], up[4 + shape["expert_ffn"]], down[:, 4]]
        np.testing.assert_allclose(
            found["expert_ffn"][1, 2, 4], sum(float(w.square().sum()) for w in rows_of) ** 0.5, rtol=1e-6
        )
        column = float(down[:, 4].abs().sum())
        np.testing.assert_allclose(wanda["expert_ffn"][1, 2, 4], column * plain["expert_ffn"][1, 2, 4], rtol=1e-6)
        return
    down = getattr(layers[1].mlp, "down_proj", None) or layers[1].mlp.dense_4h_to_h
    column = float(down.weight[:, 4].double().abs().sum())
    np.testing.assert_allclose(wanda["ffn"][1, 4], column * plain["ffn"][1, 4], rtol=1e-6)
    if family == "llama":
        mlp = layers[1].mlp
        parts = [mlp.gate_proj.weight[4], mlp.up_proj.weight[4], mlp.down_proj.weight[:, 4]]
        np.testing.assert_allclose(
            found["ffn"][1, 4], sum(float(w.double().square().sum()) for w in parts) ** 0.5, rtol=1e-6
        )
