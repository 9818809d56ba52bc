"""The residual merge of heads: the paper's formula term by term, and the same model trimmed as masked."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from minitron_cli.checkpoint.provenance import read_plan
from minitron_cli.checkpoint.reader import open_checkpoint
from minitron_cli.errors import MinitronError
from minitron_cli.prune.mask import masked_source
from minitron_cli.prune.run import write_pruned
from minitron_cli.prune.verify import verify
from minitron_cli.spec.merge import head_merge
from minitron_cli.spec.plan import with_head_merge
from minitron_cli.spec.shape import Shape
from tests.prune.cutting import difference, load, logits_of, plan_for, random_scores
from tests.toys import toy_ids

Toy = Callable[..., Path]


def test_pairs_of_the_published_case() -> None:
    """48 heads to 24 over 8 KV groups: L = 6, K = 3 in each, pairs 1-6, 2-5, 3-4 by rank."""
    source, target = Shape({"head": 48, "kv": 8}), Shape({"head": 24, "kv": 8})
    scores = np.random.default_rng(0).random((1, 48))
    order = np.argsort(-scores.reshape(8, 6), axis=1) + 6 * np.arange(8)[:, None]
    kept = np.sort(order[:, :3], axis=1).reshape(1, 24)
    merge = head_merge("query", scores, source, target, kept)
    for group in order:
        for i, j in ((1, 6), (2, 5), (3, 4)):
            assert merge.partner[0][kept[0] == group[i - 1]] == group[j - 1]


def test_when_fewer_go_than_stay_the_best_are_left_alone() -> None:
    """L = 5, K = 3: i runs from 2, so rank 1 keeps to itself, 2 takes 5 and 3 takes 4."""
    source, target = Shape({"head": 5, "kv": 1}), Shape({"head": 3, "kv": 1})
    merge = head_merge("query", np.array([[1.0, 5.0, 3.0, 2.0, 4.0]]), source, target, np.array([[1, 2, 4]]))
    assert merge.partner.tolist() == [[1, 3, 0]]


@pytest.mark.parametrize("mode", ["query", "both"])
def test_the_formula_in_the_weights(mode: str, toy: Toy, tmp_path: Path) -> None:
    source = open_checkpoint(toy("qwen2"))
    scores = random_scores(source.shape)
    plan = with_head_merge(plan_for(source, {"head": 4}), scores, mode)
    write_pruned(source, plan, tmp_path / "small")
    old, new = load_file(source.path / "model.safetensors"), load_file(tmp_path / "small" / "model.safetensors")
    for layer in range(3):
        name = f"model.layers.{layer}.self_attn." + "{}"
        q, bias, o = (old[name.format(n)] for n in ("q_proj.weight", "q_proj.bias", "o_proj.weight"))
        q, bias, o = q.reshape(6, 10, -1), bias.reshape(6, 10), o.T.reshape(6, 10, -1)
        for group in (0, 1):
            best, middle, worst = np.argsort(-scores.values["head"][layer, 3 * group : 3 * group + 3]) + 3 * group
            for place, head in enumerate(sorted((best, middle)), start=2 * group):
                rows = slice(10 * place, 10 * place + 10)
                takes = head == middle
                merged = [2 * x[head] - x[worst] if takes else x[head] for x in (q, bias)]
                assert torch.equal(new[name.format("q_proj.weight")][rows], merged[0])
                assert torch.equal(new[name.format("q_proj.bias")][rows], merged[1])
                columns = 2 * o[head] - o[worst] if takes and mode == "both" else o[head]
                assert torch.equal(new[name.format("o_proj.weight")][:, rows].T, columns)


@pytest.mark.parametrize("mode", ["query", "both"])
@pytest.mark.parametrize("model_type", ["llama", "phi3", "gpt_oss", "gemma3_text"])
def test_trim_equals_mask(model_type: str, mode: str, toy: Toy, tmp_path: Path) -> None:
    source = open_checkpoint(toy(model_type))
    plain = plan_for(source, {"head": 4, "hidden": 36, "layer": 2})
    plan = with_head_merge(plain, random_scores(source.shape), mode)
    write_pruned(source, plan, tmp_path / "small")
    trimmed = logits_of(tmp_path / "small")
    assert difference(trimmed, masked_source(load(source.path), source.family, plan)(toy_ids(2, 11))) < 2e-5
    assert difference(trimmed, masked_source(load(source.path), source.family, plain)(toy_ids(2, 11))) > 1e-2


def test_it_can_be_read_back_and_verified(toy: Toy, tmp_path: Path) -> None:
    source = open_checkpoint(toy("llama"))
    plan = with_head_merge(plan_for(source, {"head": 4}), random_scores(source.shape), "both")
    write_pruned(source, plan, tmp_path / "small")
    stored = read_plan(tmp_path / "small")
    assert stored is not None
    assert stored.merge is not None
    assert stored.merge.mode == "both"
    assert np.array_equal(stored.merge.partner, plan.merge.partner)
    assert verify(tmp_path / "small", str(source.path), load=False)["problems"] == []


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ({"head": 6, "kv": 2}, {"head": 2, "kv": 2}),
        ({"head": 6, "kv": 2}, {"head": 3, "kv": 1}),
        ({"head": 6}, {"head": 4}),
    ],
)
def test_what_it_can_not_do(source: dict[str, int], target: dict[str, int]) -> None:
    with pytest.raises(MinitronError, match="--head-merge can not take") as caught:
        head_merge("query", np.ones((1, 6)), Shape(source), Shape(target), np.zeros((1, 2), dtype=int))
    assert caught.value.hint
