"""safetensors headers, read with suspicion: nothing is trusted that the file itself does not bear out."""

import json
import struct
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

from minitron_cli.errors import MinitronError

# Bytes per element of the storage types that can be sliced by whole elements.
ITEM_BYTES = {
    "F64": 8, "I64": 8, "U64": 8,
    "F32": 4, "I32": 4, "U32": 4,
    "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
    "F8_E4M3": 1, "F8_E5M2": 1, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip
MAX_HEADER_BYTES = 100 << 20  # the format's own limit

_HINT = "the file is damaged or was not downloaded completely; fetch it again"


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor lies: `begin` is its absolute byte offset in `file`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    begin: int

    @property
    def num_bytes(self) -> int:
        return prod(self.shape) * ITEM_BYTES[self.dtype]


def read_header(file: Path) -> dict[str, TensorInfo]:
    """List the tensors of one safetensors file, checking every offset against shape, dtype and file size."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        prefix = stream.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
            raise MinitronError(f"{file} is not a safetensors file (its header says {length} bytes)", _HINT)
        raw = stream.read(length)
    try:
        header = json.loads(raw)
    except ValueError as error:
        raise MinitronError(f"{file} has an unreadable header: {error}", _HINT) from error
    if not isinstance(header, dict):
        raise MinitronError(f"{file} has a header that is no JSON object", _HINT)
    header.pop("__metadata__", None)
    data = 8 + length
    tensors = {name: _entry(file, name, entry, data, size) for name, entry in header.items()}
    _check_overlap(file, tensors)
    return tensors


def _entry(file: Path, name: str, entry: Any, data: int, size: int) -> TensorInfo:
    try:
        dtype, shape = str(entry["dtype"]), tuple(int(n) for n in entry["shape"])
        begin, end = (int(n) for n in entry["data_offsets"])
    except (TypeError, KeyError, ValueError) as error:
        raise MinitronError(f"{file}: the header entry of {name!r} is malformed", _HINT) from error
    if dtype not in ITEM_BYTES:
        raise MinitronError(
            f"{file}: {name!r} is stored as {dtype}, which can not be sliced",
            f"convert the checkpoint to one of {', '.join(ITEM_BYTES)}",
        )
    info = TensorInfo(name, dtype, shape, file, data + begin)
    if min((0, *shape)) < 0 or begin < 0 or end - begin != info.num_bytes:
        raise MinitronError(f"{file}: {name!r} claims bytes {begin}..{end} for {dtype} {list(shape)}", _HINT)
    if data + end > size:
        raise MinitronError(f"{file} is truncated: {name!r} ends at byte {data + end}, the file at {size}", _HINT)
    return info


def _check_overlap(file: Path, tensors: dict[str, TensorInfo]) -> None:
    ordered = sorted(tensors.values(), key=lambda t: (t.begin, t.num_bytes))
    for left, right in pairwise(ordered):
        if left.begin + left.num_bytes > right.begin:
            raise MinitronError(f"{file}: {left.name!r} and {right.name!r} share bytes", _HINT)
