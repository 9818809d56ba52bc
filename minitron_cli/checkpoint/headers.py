"""safetensors headers; what they claim of offsets, shapes and sizes is checked against the file before it is used."""

import json
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Protocol, TypeGuard

import numpy as np

from minitron_cli.errors import MinitronError

# Bytes per element of the storage types that can be sliced by whole elements.
ITEM_BYTES = {
    "F64": 8, "I64": 8, "U64": 8,
    "F32": 4, "I32": 4, "U32": 4,
    "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
    "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip
FLOATS = ("F64", "F32", "F16", "BF16")  # what weights are stored in, unless they are quantised
MAX_HEADER_BYTES = 100 << 20  # the format's own limit

_HINT = "the file is damaged or was not downloaded completely; fetch it again"


class Codes(Protocol):
    """How the values of a tensor that is quantised or transposed, as rows of its last dimension, follow from its bytes
    (see `codes`)."""

    @property
    def scale(self) -> "TensorInfo | None":
        """The scales; None where the bytes are the values, in another order."""

    @property
    def rows_together(self) -> int:
        """Bytes belong to this many rows, or to multiples of them."""

    def num_bytes(self, count: int) -> int:
        """Bytes of as many values."""

    def rows(self, raw: np.ndarray, begin: int, first: int, count: int) -> np.ndarray:
        """Rows first .. first + count, floats (count, last): `raw` are the bytes from row `begin` on, uint8."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor is stored: `begin` is its absolute byte offset in `file`.

    `dtype` and `shape` are those of its values. Where it is quantised or transposed, `codes` makes them of the bytes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    begin: int
    codes: Codes | None = None

    @property
    def num_bytes(self) -> int:
        """Bytes of the values."""
        return prod(self.shape) * ITEM_BYTES[self.dtype]

    @property
    def stored_bytes(self) -> int:
        """Bytes that they take in the files, with their scales where they are quantised."""
        if self.codes is None:
            return self.num_bytes
        return self.codes.num_bytes(prod(self.shape)) + (self.codes.scale.num_bytes if self.codes.scale else 0)

    def span(self, first: int, count: int) -> tuple[int, int]:
        """Where the bytes of `count` elements from index `first` on lie: (absolute offset, number of bytes)."""
        if self.codes is not None:
            return self.begin + self.codes.num_bytes(first), self.codes.num_bytes(count)
        item = ITEM_BYTES[self.dtype]
        return self.begin + first * item, count * item


def read_header(file: Path) -> dict[str, TensorInfo]:
    """List the tensors of one safetensors file, checking every offset against shape, dtype and file size."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        prefix = stream.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
            raise MinitronError(f"{file} is not a safetensors file (its header says {length} bytes)", _HINT)
        raw = stream.read(length)
    header = _parse(file, raw)
    data = 8 + length
    tensors = {name: _entry(file, name, entry, data, size) for name, entry in header.items() if name != "__metadata__"}
    _check_layout(file, tensors, data, size)
    return tensors


def _parse(file: Path, raw: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a name stands twice")
        return found

    try:
        header = json.loads(raw, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise MinitronError(f"{file} has an unreadable header: {error}", _HINT) from error
    if not isinstance(header, dict):
        raise MinitronError(f"{file} has a header that is no JSON object", _HINT)
    return header


def _entry(file: Path, name: str, entry: Any, data: int, size: int) -> TensorInfo:
    fields = entry if isinstance(entry, dict) else {}
    dtype, shape, offsets = (fields.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or not _counts(shape) or not _counts(offsets) or len(offsets) != 2:
        raise MinitronError(f"{file}: the header entry of {name!r} is malformed", _HINT)
    if dtype not in ITEM_BYTES:
        raise MinitronError(
            f"{file}: {name!r} is stored as {dtype}, which cannot be sliced",
            f"convert the checkpoint to one of {', '.join(FLOATS)}",
        )
    begin, end = offsets
    info = TensorInfo(name, dtype, tuple(shape), file, data + begin)
    if end - begin != info.num_bytes:
        raise MinitronError(f"{file}: {name!r} claims bytes {begin}..{end} for {dtype} {list(shape)}", _HINT)
    if data + end > size:
        raise MinitronError(f"{file} is truncated: {name!r} ends at byte {data + end}, the file at {size}", _HINT)
    return info


def _counts(values: Any) -> TypeGuard[list[int]]:
    """Whether this is a list of whole numbers, none of them negative."""
    return isinstance(values, list) and all(type(n) is int and n >= 0 for n in values)


def _check_layout(file: Path, tensors: dict[str, TensorInfo], data: int, size: int) -> None:
    """The format leaves no byte unclaimed and none claimed twice."""
    at, last = data, "the header"
    for tensor in sorted(tensors.values(), key=lambda t: (t.begin, t.num_bytes)):
        if tensor.begin < at:
            raise MinitronError(f"{file}: {last!r} and {tensor.name!r} share bytes", _HINT)
        if tensor.begin > at:
            raise MinitronError(f"{file}: {tensor.begin - at} bytes before {tensor.name!r} belong to no tensor", _HINT)
        at, last = tensor.begin + tensor.num_bytes, tensor.name
    if at != size:
        raise MinitronError(f"{file}: {size - at} bytes at its end belong to no tensor", _HINT)
