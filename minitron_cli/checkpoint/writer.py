"""Write safetensors front to back: sizes are known before the first byte, so nothing is held but the block at hand."""

import ctypes
import errno
import json
import os
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

from minitron_cli.checkpoint.headers import ITEM_BYTES

MAX_SHARD_BYTES = 5 * 10**9


@dataclass(frozen=True, slots=True)
class TensorOut:
    """A tensor to be written: its name, storage type and shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return prod(self.shape) * ITEM_BYTES[self.dtype]


def shards(tensors: Sequence[TensorOut], max_bytes: int = MAX_SHARD_BYTES) -> list[list[TensorOut]]:
    """Cut the list, in order, into shards of at most `max_bytes` (a larger tensor gets one of its own)."""
    cut: list[list[TensorOut]] = [[]]
    filled = 0
    for tensor in tensors:
        if cut[-1] and filled + tensor.num_bytes > max_bytes:
            cut.append([])
            filled = 0
        cut[-1].append(tensor)
        filled += tensor.num_bytes
    return cut


def shard_names(count: int) -> list[str]:
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]


def write_index(directory: Path, cut: Sequence[Sequence[TensorOut]]) -> None:
    """Write model.safetensors.index.json for a sharded checkpoint; a single file needs none."""
    if len(cut) == 1:
        return
    names = shard_names(len(cut))
    weight_map = {tensor.name: name for name, shard in zip(names, cut) for tensor in shard}
    total = sum(tensor.num_bytes for shard in cut for tensor in shard)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def header_bytes(tensors: Iterable[TensorOut]) -> bytes:
    """The length prefix and JSON header of a safetensors file, padded to 8 bytes so that the data is aligned."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        end = offset + tensor.num_bytes
        header[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    return struct.pack("<Q", len(raw)) + raw


def reserve(descriptor: int, num_bytes: int) -> None:
    """Have the disk set space aside for a file that will be written front to back: a full disk shows at once.

    It also spares the file system from finding blocks write by write, which costs several times the copying. Where the
    system or the file system cannot do it, nothing happens: not posix_fallocate, which writes zeros then.
    """
    allocate = getattr(ctypes.CDLL(None, use_errno=True), "fallocate", None)
    if allocate is None or num_bytes == 0:
        return
    allocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    if allocate(descriptor, 0, 0, num_bytes) and ctypes.get_errno() in (errno.ENOSPC, errno.EDQUOT):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
