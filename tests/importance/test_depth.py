"""Depth curves against models that were really built without the layers."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from minitron_cli.checkpoint.reader import open_checkpoint
from minitron_cli.errors import MinitronError
from minitron_cli.hf.samples import Samples
from minitron_cli.importance import depth
from minitron_cli.importance.options import DEPTH_METRICS
from minitron_cli.prune.target import Target, make_plan, target_shape
from minitron_cli.prune.write import write_pruned
from tests.toys import toy_ids

FAMILIES = ["llama", "qwen3", "granite", "smollm3", "gemma2", "gpt_neox", "mixtral"]


def prepare(path):
    model = AutoModelForCausalLM.from_pretrained(path).eval()
    return model, list(model.get_decoder().layers)


def batches(ids, spans=None, size=2):
    return Samples(ids, spans).batches(size, torch.device("cpu"))


def logits_without(path, dropped, ids, out):
    """Logits of the checkpoint that `prune` leaves when it drops these layers: (batch, token, vocab) float64."""
    checkpoint = open_checkpoint(path)
    target = Target({}, tuple(dropped))
    plan = make_plan(checkpoint.shape, target_shape(checkpoint, target), target, None)
    write_pruned(checkpoint, plan, out)
    model = AutoModelForCausalLM.from_pretrained(out).eval()
    with torch.no_grad():
        return model(input_ids=torch.from_numpy(ids)).logits.double()


def literal(metric, logits, full, ids):
    logits, full, targets = (
        logits[:, :-1].flatten(0, 1),
        full[:, :-1].flatten(0, 1),
        torch.from_numpy(ids)[:, 1:].flatten(),
    )
    if metric == "loss":
        return float(F.cross_entropy(logits, targets))
    if metric == "mse":
        return float((logits - full).square().mean())
    p, q = full.softmax(-1), logits.softmax(-1)
    return float((p * (p / q).log()).sum(-1).mean())


@pytest.mark.parametrize("family", FAMILIES)
def test_curve_is_that_of_checkpoints_without_the_layers(toy, family, tmp_path):
    path, ids = toy(family), toy_ids(3, 10).numpy()
    model, blocks = prepare(path)
    with torch.no_grad():
        full = model(input_ids=torch.from_numpy(ids)).logits.double()
    for size in (1, 2):
        candidates = depth.contiguous(range(len(blocks)), size)
        found = {m: depth.sweep(model, blocks, batches(ids), candidates, m) for m in DEPTH_METRICS}
        for number, dropped in enumerate(candidates):
            logits = logits_without(path, dropped, ids, tmp_path / f"{size}-{number}")
            for metric, swept in found.items():
                np.testing.assert_allclose(swept.values[number], literal(metric, logits, full, ids), rtol=2e-5)
        np.testing.assert_allclose(found["loss"].full, literal("loss", full, full, ids), rtol=1e-5)
        assert found["kl"].full == found["mse"].full == 0.0


def test_greedy_measures_what_is_left(toy, tmp_path):
    path, ids = toy("llama", num_hidden_layers=4), toy_ids(2, 10).numpy()
    model, blocks = prepare(path)
    first, second = depth.greedy(model, blocks, lambda: batches(ids), 2)
    gone = first.candidates[first.best][0]
    for number, (layer,) in enumerate(second.candidates):
        logits = logits_without(path, sorted({gone, layer}), ids, tmp_path / str(number))
        np.testing.assert_allclose(second.values[number], literal("loss", logits, logits, ids), rtol=2e-5)
    np.testing.assert_allclose(second.full, first.values[first.best], rtol=1e-6)


def test_padding_changes_no_curve(toy):
    path, ids = toy("llama"), toy_ids(2, 8).numpy()
    model, blocks = prepare(path)
    wide = np.concatenate([ids, np.zeros((2, 5), np.int64)], axis=1)
    candidates = depth.contiguous(range(3), 1)
    plain = depth.sweep(model, blocks, batches(ids), candidates)
    padded = depth.sweep(model, blocks, batches(wide, ((0, 8), (0, 8))), candidates)
    np.testing.assert_allclose(plain.values, padded.values, rtol=1e-5)
    assert plain.tokens == padded.tokens == 14


def test_the_model_is_left_as_it_was(toy):
    ids = toy_ids(1, 6).numpy()
    model, blocks = prepare(toy("llama"))
    before = model(input_ids=torch.from_numpy(ids)).logits
    depth.sweep(model, blocks, batches(ids), depth.contiguous(range(3), 1))
    assert torch.equal(model(input_ids=torch.from_numpy(ids)).logits, before)
    assert not any("forward" in module.__dict__ for module in model.modules())


def test_cost_is_under_half_a_pass_per_candidate():
    candidates = depth.contiguous(range(32), 1)
    assert depth.cost(candidates, range(32)) == 1 + (31 * 32 / 2) / 32
    assert depth.cost(candidates, range(32)) < len(candidates) * 0.52


def test_blocks_that_leave_nothing_are_refused():
    with pytest.raises(MinitronError, match="block of 4 layers cannot be dropped from 4"):
        depth.contiguous(range(4), 4)
