"""The facts about a checkpoint that its config and headers give away."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.spec.axes import FLAG_OF_AXIS, axes_of
from minitron_cli.spec.shape import flops_per_token, kv_bytes_per_token


def describe(checkpoint: Checkpoint, context: int) -> dict[str, Any]:
    """Family, shape, exact parameter counts, bytes, KV bytes and FLOPs per token, and what can be pruned."""
    shape, family = checkpoint.shape, checkpoint.family
    weights = {m.weight.name: m.weight for m in checkpoint.matches.values()}.values()
    return {
        "model": str(checkpoint.path),
        "model_type": checkpoint.config["model_type"],
        "family": family.name,
        "shape": dict(shape.sizes),
        "parameters": _count(checkpoint),
        "non_embedding_parameters": _count(checkpoint, embedding=False),
        "bytes": checkpoint.num_bytes,
        "dtypes": sorted(Counter(t.dtype for t in checkpoint.tensors.values())),
        "kv_bytes_per_token": kv_bytes_per_token(shape),
        "flops_per_token": flops_per_token(weights, shape, context),
        "context": context,
        "tensors": len(checkpoint.tensors),
        "axes": [_axis(checkpoint, axis) for axis in shape],
    }


def _axis(checkpoint: Checkpoint, axis: str) -> Mapping[str, Any]:
    family = checkpoint.family
    if axis in family.refuses:
        note = f"no: {family.refuses[axis]}"
    elif axis not in FLAG_OF_AXIS:
        note = "no: kept as it is"
    else:
        note = f"yes, but {family.warns[axis]}" if axis in family.warns else "yes"
    if axis == "hidden" and family.rms_norms and note == "yes":
        note = "yes, along channels or directions (--rotate)"
    flag = f"--{FLAG_OF_AXIS[axis]}" if axis in FLAG_OF_AXIS else ""
    return {"axis": axis, "size": checkpoint.shape[axis], "flag": flag, "note": note}


def _count(checkpoint: Checkpoint, embedding: bool = True) -> int:
    total = 0
    for name, found in checkpoint.matches.items():
        vocab = any("vocab" in axes_of(dim) for dim in found.weight.dims)
        if not found.weight.junk and (embedding or not vocab):
            elements = 1
            for length in checkpoint.tensors[name].shape:
                elements *= length
            total += elements
    return total
