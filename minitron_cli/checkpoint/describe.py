"""Facts about a checkpoint, from its config and headers alone."""

from collections.abc import Mapping
from math import prod
from typing import Any

from minitron_cli.checkpoint.architecture import Architecture, beside_bytes, stored_weights
from minitron_cli.checkpoint.quantised import method_of
from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.families.features import limits
from minitron_cli.spec.axes import FLAG_OF_AXIS
from minitron_cli.spec.shape import flops_per_token, kv_bytes_per_token, num_elements, state_bytes


def describe(model: Checkpoint | Architecture, context: int) -> dict[str, Any]:
    """Family, shape, exact parameter counts, bytes, KV bytes and FLOPs per token, and what can be pruned.

    Of a config alone there are no types and no number of tensors; bytes are those of the config's dtype. Of a model of
    text and images all figures are its text model's, but for those of `beside`.
    """
    shape, family = model.shape, model.family
    if isinstance(model, Checkpoint):
        counted = {"parameters": _count(model), "non_embedding_parameters": _count(model, embedding=False)}
    else:
        counted = {"parameters": model.parameters, "non_embedding_parameters": model.non_embedding}
    tensors = {name: model.tensors[name] for name in model.matches} if isinstance(model, Checkpoint) else {}
    if isinstance(model, Checkpoint) and model.dequantised:
        tensors = dict(model.stored.tensors)
    return {
        "model": str(model.path) if isinstance(model, Checkpoint) else None,
        "model_type": model.config["model_type"],
        "family": family.name,
        "beside": _beside(model) if isinstance(model, Checkpoint) and model.wrapping is not None else None,
        "weights": isinstance(model, Checkpoint),
        "shape": dict(shape.sizes),
        **counted,
        "bytes": model.stored_bytes if isinstance(model, Checkpoint) else model.num_bytes,
        "quantised": model.stored.method if isinstance(model, Checkpoint) else method_of(model.config),
        "dtypes": sorted({t.dtype for t in tensors.values()}),
        "kv_bytes_per_token": kv_bytes_per_token(shape),
        "state_bytes": state_bytes(shape),
        "flops_per_token": flops_per_token(stored_weights(model), shape, context),
        "context": context,
        "tensors": len(tensors),
        "axes": [_axis(model, axis) for axis in shape],
        "layers": {kind: len(shape.layers_of_kind(kind)) for kind in sorted({k for ks in shape.kinds for k in ks})},
        "limits": limits(family, len(set(shape.kinds)) > 1),
    }


def _beside(model: Checkpoint) -> dict[str, Any]:
    """What a model of text and images has beside its text model."""
    return {
        "model_type": model.whole["model_type"],
        "tensors": len(model.beside),
        "parameters": sum(num_elements(match.weight, model.shape) for match in model.beside.values()),
        "bytes": beside_bytes(model, model.shape),
        "cut_with_hidden": sorted(n for n, m in model.beside.items() if m.weight.axes),
    }


def _axis(checkpoint: Checkpoint | Architecture, axis: str) -> Mapping[str, Any]:
    family = checkpoint.family
    if axis in family.refuses:
        note = f"no: {family.refuses[axis]}"
    elif axis not in FLAG_OF_AXIS and axis in dict(family.follows):
        note = f"with --{FLAG_OF_AXIS[dict(family.follows)[axis]]}"
    elif axis not in FLAG_OF_AXIS:
        note = "no: kept as it is"
    else:
        note = f"yes, but {family.warns[axis]}" if axis in family.warns else "yes"
    if axis == "hidden" and family.norms and note == "yes":
        note = "yes, along channels or directions (--rotate)"
    if axis == "expert" and family.dense is not None and note == "yes":
        note = f"yes; with one expert it becomes a dense {family.dense.model_type}"
    if axis == "vocab" and note == "yes":
        note = "yes, where its tokenizer is BPE or Unigram"
    flag = f"--{FLAG_OF_AXIS[axis]}" if axis in FLAG_OF_AXIS else ""
    return {"axis": axis, "size": checkpoint.shape[axis], "flag": flag, "note": note}


def _count(checkpoint: Checkpoint, embedding: bool = True) -> int:
    return sum(
        prod(checkpoint.tensors[name].shape)
        for name, found in checkpoint.matches.items()
        if not found.weight.junk and (embedding or "vocab" not in found.weight.axes)
    )
