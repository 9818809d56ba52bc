"""Weights for a model that was built empty (empty.py): read from safetensors, or drawn, each rank keeping its own part.

A rank reads the bytes of its own rows of every tensor and no others. Where transformers stores a weight otherwise than
it holds it (experts apart on disk, fused in memory), its own conversion makes one whole tensor at a time.
"""

from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from minitron_cli.checkpoint.headers import ITEM_BYTES, TensorInfo
from minitron_cli.checkpoint.provenance import examine_hint
from minitron_cli.checkpoint.reader import text_tensors
from minitron_cli.checkpoint.tensors import read_elements, read_tensor
from minitron_cli.errors import MinitronError
from minitron_cli.hf.empty import empty_model, materialise
from minitron_cli.hf.process_group import CPU, own_part

_BLOCK_BYTES = 64 << 20  # of a file, read at a time


@dataclass(frozen=True, slots=True)
class _Source:
    """What a weight in memory is made of: tensors on disk, and transformers' conversion where they are not the weight
    itself. `pattern` is the part of the conversion that each tensor matches."""

    tensors: tuple[TensorInfo, ...]
    patterns: tuple[str, ...] = ()
    converter: Any = None


def filled_model(
    config: Any,
    dtype: torch.dtype,
    path: Path,
    device: torch.device | None = None,
    tensors: Mapping[str, TensorInfo] | None = None,
) -> Any:
    """The causal LM of a config in evaluation mode, its weights read from a directory (see `fill`)."""
    model = empty_model(config, dtype)
    materialise(model, device or CPU)
    fill(model, path, tensors)
    return model.eval()


@torch.no_grad()
def fill(model: nn.Module, path: Path, tensors: Mapping[str, TensorInfo] | None = None) -> None:
    """Read every weight of a model from the safetensors of a directory, into its own memory and type.

    `tensors` are those of the directory (None: listed here, dequantised where they are quantised).
    Raises MinitronError where the directory lacks a weight, or has it in another shape.
    """
    wanted = _wanted(model)
    left = set(wanted)
    for name, source in _sources(model, text_tensors(path) if tensors is None else tensors).items():
        if source.converter is None:
            if name in left:
                _read(wanted[name], source.tensors[0], path, name)
                left.discard(name)
            continue
        for made, tensor in _convert(model, name, source).items():
            if made in left:
                _require_shape(wanted[made], tuple(tensor.shape), path, made)
                put(wanted[made], tensor)
                left.discard(made)
    # A tied weight is on disk under any one of its names.
    filled = {id(wanted[name]) for name in wanted.keys() - left}
    require_weights(path, (name for name in left if id(wanted[name]) not in filled))


def require_weights(path: Path, missing: Iterable[str]) -> None:
    """Refuse a directory that lacks these weights."""
    if names := sorted(missing):
        raise MinitronError(
            f"{path} lacks {len(names)} of its weights: {', '.join(names[:4])}{' ...' if names[4:] else ''}",
            examine_hint(path),
        )


def _wanted(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and persistent buffer under each of its names, a tied weight's own name before the others."""
    state = model.state_dict(keep_vars=True)
    first = {id(p): name for name, p in model.named_parameters()}
    return dict(sorted(state.items(), key=lambda item: first.get(id(item[1]), item[0]) != item[0]))


def _sources(model: Any, tensors: Mapping[str, TensorInfo]) -> dict[str, _Source]:
    """Where each weight comes from, by its name in memory; names and conversions are transformers' own."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

    mapping = get_model_conversion_mapping(model)
    renamings = [m for m in mapping if isinstance(m, WeightRenaming)]
    converters = [m for m in mapping if isinstance(m, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    state, prefix = model.state_dict(), model.base_model_prefix
    found: dict[str, _Source] = {}
    for name in sorted(tensors, key=dot_natural_key):
        inside, pattern = rename_source_key(name, renamings, converters, prefix, state)
        if inside not in state and name in state:
            inside, pattern = name, None
        if inside not in state:
            continue  # what no weight is made of has been judged by the family's table
        if pattern is None:
            found[inside] = _Source((tensors[name],))
            continue
        before = found.get(inside, _Source((), (), deepcopy(by_pattern[pattern])))
        found[inside] = _Source((*before.tensors, tensors[name]), (*before.patterns, pattern), before.converter)
    return found


def _convert(model: Any, name: str, source: _Source) -> dict[str, Tensor]:
    """Whole weights by name, as transformers makes them of the tensors on disk."""
    for tensor, pattern in zip(source.tensors, source.patterns):
        source.converter.add_tensor(name, tensor.name, pattern, read_tensor(tensor))
    made = source.converter.convert(name, model=model, config=model.config)
    return {key: value[0] if isinstance(value, list) else value for key, value in made.items()}


def _require_shape(wanted: Tensor, shape: tuple[int, ...], path: Path, name: str) -> None:
    if tuple(wanted.shape) != shape:
        raise MinitronError(
            f"{path}: {name} has shape {list(shape)}, the config says {list(wanted.shape)}",
            examine_hint(path),
        )


def _read(wanted: Tensor, stored: TensorInfo, path: Path, name: str) -> None:
    """Fill this rank's part of a weight from the tensor that it is, block by block."""
    _require_shape(wanted, stored.shape, path, name)
    part, start = own_part(wanted)
    flat = part.view(-1)
    step = _BLOCK_BYTES // ITEM_BYTES[stored.dtype]
    for at in range(0, len(flat), step):
        block = flat[at : at + step]
        block.copy_(read_elements(stored, start + at, len(block)))


def put(wanted: Tensor, whole: Tensor) -> None:
    """Fill this rank's part of a weight from all of it."""
    part, start = own_part(wanted)
    part.view(-1).copy_(whole.reshape(-1)[start : start + part.numel()])
