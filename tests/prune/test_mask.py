"""Trimming equals masking, for every family and axis, through a reload with transformers; and the test can fail."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from minitron_cli.checkpoint.reader import open_checkpoint
from minitron_cli.prune.mask import masked_source
from minitron_cli.prune.write import write_pruned
from minitron_cli.spec.family import match
from minitron_cli.spec.plan import Plan
from tests.prune.cutting import ALL_CASES, difference, load, logits_of, plan_for, prune_to, sizes_for
from tests.toys import TOY_CONFIGS, toy_ids

Toy = Callable[..., Path]
TOLERANCE = 2e-5  # float32, relative to the spread of the logits
RECURRENT = 1e-4  # where rounding is carried on from token to token


def masked_logits(source: Path, plan: Plan) -> torch.Tensor:
    return masked_source(load(source), open_checkpoint(source).family, plan)(toy_ids(2, 11))


@pytest.mark.parametrize(("model_type", "cut"), ALL_CASES)
def test_trim_equals_mask(model_type: str, cut: str, toy: Toy, tmp_path: Path) -> None:
    source = toy(model_type)
    checkpoint = open_checkpoint(source)
    plan = plan_for(checkpoint, sizes_for(model_type, cut))
    write_pruned(checkpoint, plan, tmp_path / "small")
    trimmed = logits_of(tmp_path / "small")
    tolerance = RECURRENT if {"key_head", "mamba_head"} & set(plan.source) else TOLERANCE
    assert difference(trimmed, masked_logits(source, plan)) < tolerance
    assert difference(trimmed, logits_of(source)) > 1e-2, "the cut changed nothing: the test proves nothing"
    other = swapped(plan)
    assert difference(trimmed, masked_logits(source, other)) > 1e-3, "one swapped unit went unnoticed"


def swapped(plan: Plan) -> Plan:
    """The plan with one kept unit exchanged for a dropped one; heads inside their group, or a KV group whole."""
    first = ("mamba_head", "mamba_dim", "expert_ffn", "ffn", "shared_ffn", "hidden", "expert", "layer")
    axis = next(a for a in (*first, "head", "value_head") if a in plan.kept)
    if axis in (groups := dict(plan.source.groups)):
        return replace(plan, kept={**plan.kept, **_other_heads(plan, axis, groups[axis])})
    kept = plan.kept[axis].copy()
    for row in kept.reshape(-1, kept.shape[-1]):
        row[-1] = np.setdiff1d(np.arange(plan.source[axis]), row)[0]
        row.sort()
    target = plan.target.of_layers(kept.tolist(), plan.source) if axis == "layer" else plan.target
    return replace(plan, target=target, kept={**plan.kept, axis: kept})


def _other_heads(plan: Plan, head: str, kv: str) -> dict[str, np.ndarray]:
    num_groups = plan.source.get(kv, plan.source[head])
    group = plan.source[head] // num_groups
    kept = {axis: plan.kept[axis].copy() for axis in (head, kv) if axis in plan.kept}
    for row in range(len(kept[head])):
        heads = kept[head][row]
        free = np.setdiff1d(np.arange(plan.source[head]), heads)
        inside = [one for one in free if one // group in heads // group]
        if inside:
            heads[np.flatnonzero(heads // group == inside[0] // group)[0]] = inside[0]
        else:
            out, new = heads[0] // group, free[0] // group
            heads[heads // group == out] += (new - out) * group
            if kv in kept:
                kept[kv][row][kept[kv][row] == out] = new
                kept[kv][row].sort()
        heads.sort()
    return kept


@pytest.mark.parametrize("model_type", TOY_CONFIGS)
def test_keeping_all_keeps_every_byte(model_type: str, toy: Toy, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    source = toy(model_type)
    prune_to(source, tmp_path / "same", {})
    before, after = load_file(source / "model.safetensors"), load_file(tmp_path / "same" / "model.safetensors")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]), name


# family -> (a line told wrongly, the cut that must reveal it). Shapes are the same: only logits can tell.
WRONG_LINES = {
    "llama": ("model.layers.{layer}.self_attn.o_proj.weight hidden (head_dim head)", "head"),
    "qwen2": ("model.layers.{layer}.self_attn.q_proj.bias (head_dim head)", "head"),
    "phi3": ("model.layers.{layer}.mlp.gate_up_proj.weight (ffn 2) hidden", "ffn"),
    "gpt_neox": ("gpt_neox.layers.{layer}.attention.query_key_value.weight (3 head head_dim) hidden", "head"),
    "olmo2": ("model.layers.{layer}.self_attn.q_norm.weight (head_dim head)", "head"),
}


@pytest.mark.parametrize("model_type", WRONG_LINES)
def test_a_wrong_table_is_found_out(model_type: str, toy: Toy, tmp_path: Path) -> None:
    source, (line, cut) = toy(model_type), WRONG_LINES[model_type]
    right = open_checkpoint(source)
    plan = plan_for(right, sizes_for(model_type, cut))
    family = right.family.with_(line)
    matches, unknown = match(family, right.tensors, right.shape.kinds)
    assert not unknown
    write_pruned(replace(right, family=family, matches=matches), plan, tmp_path / "wrong")
    wrong = logits_of(tmp_path / "wrong")
    assert difference(wrong, masked_logits(source, plan)) > 1e-2
    assert difference(wrong, masked_source(load(source), family, plan)(toy_ids(2, 11))) > 1e-2, "wrong, yet consistent"


def test_a_repair_left_out_is_found_out(toy: Toy, tmp_path: Path) -> None:
    """Gemma's embeddings are multiplied by sqrt(hidden): trimming alone gives another function."""
    source = toy("gemma2")
    checkpoint = open_checkpoint(source)
    plan = plan_for(checkpoint, sizes_for("gemma2", "hidden"))
    write_pruned(replace(checkpoint, family=replace(checkpoint.family, repair=None)), plan, tmp_path / "plain")
    assert difference(logits_of(tmp_path / "plain"), masked_logits(source, plan)) > 1e-2
