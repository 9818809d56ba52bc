"""Every score against the literal formulas, on several families; batches and padding change nothing."""

import itertools

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from minitron_cli.checkpoint.reader import open_checkpoint
from minitron_cli.hf.hooks import find_sites
from minitron_cli.hf.samples import Samples
from minitron_cli.importance import forward
from minitron_cli.importance.aggregate import Aggregation, to_scores
from minitron_cli.importance.recorder import Recorder
from tests.importance import literal
from tests.toys import TOY_CONFIGS, toy_ids

PAIRS = list(itertools.product(("mean", "l2", "var"), repeat=2))


def run(path, samples, batch_size=4):
    """(raw, rows, checkpoint) of one pass."""
    checkpoint = open_checkpoint(path)
    model = AutoModelForCausalLM.from_pretrained(path).eval()
    sites = find_sites(checkpoint, model, torch.device("cpu"))
    recorder = Recorder(sites)
    forward.run(model, sites, samples.batches(batch_size, torch.device("cpu")), recorder)
    return recorder.raw(), recorder.rows, checkpoint


def score(path, samples, batch_size=4, batch="l2", seq="mean"):
    raw, rows, checkpoint = run(path, samples, batch_size)
    return to_scores(raw, rows, checkpoint.family, checkpoint.shape, Aggregation(batch, seq))


@pytest.mark.parametrize("family", TOY_CONFIGS)
def test_every_pair_of_aggregations_is_the_formula(toy, family):
    path = toy(family)
    ids = toy_ids(5, 11).numpy()
    raw, rows, checkpoint = run(path, Samples(ids), batch_size=2)
    model = AutoModelForCausalLM.from_pretrained(path).eval()
    caught = literal.catch(model, ids)
    shape = checkpoint.shape
    for batch, seq in PAIRS:
        ours = to_scores(raw, rows, checkpoint.family, shape, Aggregation(batch, seq))
        counts = (shape.get(axis) for axis in ("expert", "value_head", "mamba_head"))
        theirs = literal.scores(caught, shape["layer"], shape.get("head"), batch, seq, *counts)
        assert ours.keys() == theirs.keys()
        for axis in theirs:
            scale = np.abs(theirs[axis]).max()
            np.testing.assert_allclose(
                ours[axis], theirs[axis], rtol=2e-5, atol=2e-6 * scale, err_msg=f"{axis} {batch} {seq}"
            )


@pytest.mark.parametrize("family", ["llama", "qwen2", "mixtral"])
def test_batch_size_changes_nothing(toy, family):
    samples = Samples(toy_ids(8, 12).numpy())
    one, eight = score(toy(family), samples, 1), score(toy(family), samples, 8)
    for axis in one:
        np.testing.assert_allclose(one[axis], eight[axis], rtol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen3_moe"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_changes_nothing(toy, side, family):
    """The same samples of different lengths, alone and padded together on either side."""
    lengths = [12, 5, 9, 1, 7]
    ids = toy_ids(len(lengths), 12).numpy()
    padded = np.zeros((len(lengths), 15), np.int64)
    spans = []
    for row, length in enumerate(lengths):
        begin = 0 if side == "right" else 15 - length
        padded[row, begin : begin + length] = ids[row, :length]
        spans.append((begin, begin + length))
    together = score(toy(family), Samples(padded, tuple(spans)), 5)
    model = AutoModelForCausalLM.from_pretrained(toy(family)).eval()
    shape = open_checkpoint(toy(family)).shape
    caught = literal.catch(model, ids, [(0, n) for n in lengths])
    alone = literal.scores(caught, shape["layer"], shape["head"], num_experts=shape.get("expert"))
    for axis in alone:
        np.testing.assert_allclose(together[axis], alone[axis], rtol=1e-4, err_msg=axis)


def test_padding_matters_to_a_score_that_forgets_the_mask(toy):
    """Negative control: without spans, the padding is counted and the scores move."""
    ids = toy_ids(4, 12).numpy()
    ids[:, 8:] = 0
    masked = score(toy("llama"), Samples(ids, ((0, 8),) * 4), 4)
    counted = score(toy("llama"), Samples(ids), 4)
    assert np.abs(masked["ffn"] / counted["ffn"] - 1).max() > 0.05
