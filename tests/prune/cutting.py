"""What the battery cuts: targets for every axis of a toy, random scores, and logits of a model directory."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from minitron_cli.checkpoint.reader import Checkpoint, open_checkpoint
from minitron_cli.families import family_of
from minitron_cli.prune.target import Target, make_plan, target_shape
from minitron_cli.prune.write import write_pruned
from minitron_cli.spec.axes import FOLLOWING_AXES, SCORED_AXES
from minitron_cli.spec.family import Family
from minitron_cli.spec.plan import Plan
from minitron_cli.spec.scores import Scores, score_shape
from minitron_cli.spec.shape import Shape, shape_of
from tests.toys import TOY_CONFIGS, toy_ids

# Toys have 6 heads over 2 KV groups and lose one of 3 layers, or of more; 36 is what Llama's own check on hidden over
# heads allows for 6, 4, 3 and 2.
HIDDEN = 36
CUTS: dict[str, dict[str, int]] = {
    "hidden": {"hidden": HIDDEN},
    "ffn": {"ffn": 56},
    "head": {"head": 4},
    "kv": {"head": 3, "kv": 1},
    "layer": {"layer": 2},
    "expert": {"expert": 3},
    "expert_ffn": {"expert_ffn": 16},
    "shared_ffn": {"shared_ffn": 32},
    "value_head": {"value_head": 2},
    "key_head": {"key_head": 1, "value_head": 1},
    "mamba_head": {"mamba_head": 8},
    "mamba_dim": {"mamba_dim": 6},
    "all": {
        "hidden": HIDDEN,
        "ffn": 56,
        "head": 2,
        "kv": 1,
        "layer": 2,
        "expert": 4,
        "expert_ffn": 16,
        "shared_ffn": 32,
        "value_head": 2,
        "mamba_head": 12,
        "mamba_dim": 6,
    },
}


def sizes_for(model_type: str, cut: str) -> dict[str, int]:
    """Target sizes of a cut; empty where the toy has no such axis."""
    family = family_of(model_type)
    return sizes_in(family, shape_of(family, TOY_CONFIGS[model_type]), cut)


def sizes_in(family: Family, shape: Shape, cut: str) -> dict[str, int]:
    """Target sizes of a cut of toys of this shape.

    Families that derive head_dim from hidden / heads get width and heads together.
    """
    sizes = {axis: size for axis, size in CUTS[cut].items() if axis in shape and axis not in family.refuses}
    if "layer" in sizes:
        sizes["layer"] = shape["layer"] - 1
    if shape.get("kv") == shape["head"]:
        sizes.pop("kv", None)
    # A size that another determines is not asked for.
    sizes = {axis: size for axis, size in sizes.items() if axis not in dict(family.follows)}
    if cut in ("kv", "head") and shape.get("kv", shape["head"]) == shape["head"]:
        sizes = {"head": 4} if cut == "head" else {}
    if cut == "mamba_head" and "mamba_expand" in family.computed:
        sizes["hidden"] = HIDDEN
    if "head_dim" in shape and "head_dim" not in family.config_keys and {"hidden", "head"} & sizes.keys():
        sizes.setdefault("head", 4)
        sizes["hidden"] = sizes["head"] * shape["head_dim"]
    return sizes


ALL_CASES = [(model_type, cut) for model_type in TOY_CONFIGS for cut in CUTS if sizes_for(model_type, cut)]


def random_scores(shape: Shape, seed: int = 0) -> Scores:
    """Random scores for every axis that can be ranked."""
    generator = np.random.default_rng(seed)
    axes = [axis for axis in (*SCORED_AXES, *FOLLOWING_AXES) if axis in shape]
    return Scores({axis: generator.random(score_shape(axis, shape)) for axis in axes})


def plan_for(source: Checkpoint, sizes: dict[str, int], seed: int = 0) -> Plan:
    """A plan that keeps random units."""
    wanted = Target(sizes)
    return make_plan(source.shape, target_shape(source, wanted), wanted, random_scores(source.shape, seed))


def prune_to(source: Path, output: Path, sizes: dict[str, int], seed: int = 0) -> Plan:
    """Prune a directory to random units of these sizes; returns the plan."""
    checkpoint = open_checkpoint(source)
    plan = plan_for(checkpoint, sizes, seed)
    write_pruned(checkpoint, plan, output)
    return plan


def load(path: Path) -> Any:
    """The model as a user loads it, in float32."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def logits_of(path: Path, ids: torch.Tensor | None = None) -> torch.Tensor:
    with torch.no_grad():
        return load(path)(toy_ids(2, 11) if ids is None else ids, use_cache=False).logits


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference of two logit tensors, relative to the spread of the second."""
    return float((a - b).abs().max() / b.std())
