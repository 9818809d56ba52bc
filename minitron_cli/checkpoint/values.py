"""Read the values of a tensor, all or a contiguous part, from the bytes of its file.

A memory map of the whole file would count in full against a memory limit.
"""

from collections.abc import Iterator
from math import prod
from pathlib import Path

import numpy as np

from minitron_cli.checkpoint.bits import to_bits
from minitron_cli.checkpoint.headers import ITEM_BYTES, TensorInfo

_BLOCK = 1 << 20  # values that are made at a time


def read_bits(info: TensorInfo, first: int = 0, count: int | None = None) -> np.ndarray:
    """`count` elements (None: all) in row-major order from index `first` on, as bits: unsigned integers (count,)."""
    count = prod(info.shape) - first if count is None else count
    if info.codes is None:
        return read_raw(info, first, count).view(f"u{ITEM_BYTES[info.dtype]}")
    width, end = info.shape[-1], first + count
    bits = np.empty(count, f"u{ITEM_BYTES[info.dtype]}")
    for row, rows in decoded(info, first // width, -(-end // width)):
        low, high = max(first, row * width), min(end, (row + len(rows)) * width)
        bits[low - first : high - first] = rows.reshape(-1)[low - row * width : high - row * width]
    return bits


def read_raw(info: TensorInfo, first: int, count: int) -> np.ndarray:
    """The bytes that hold `count` elements from index `first` on: uint8 (n,)."""
    begin, num_bytes = info.span(first, count)
    raw = np.empty(num_bytes, np.uint8)
    read_bytes(info.file, begin, memoryview(raw.data))
    return raw


def decoded(info: TensorInfo, first: int, last: int) -> Iterator[tuple[int, np.ndarray]]:
    """Rows first .. last - 1 of a quantised tensor, a block at a time: the index of its first row, and their bits."""
    assert info.codes is not None
    width, together = info.shape[-1], info.codes.rows_together
    step = max(1, _BLOCK // width)
    whole = max(step // together, 1) * together
    for begin in range(first // together * together, last, whole):
        end = min(begin + whole, -(-last // together) * together)
        raw = read_raw(info, begin * width, (end - begin) * width)
        for row in range(max(first, begin), min(last, end), step):
            count = min(step, last - row, end - row)
            yield row, decode(info, raw, begin, row, count)


def decode(info: TensorInfo, raw: np.ndarray, begin: int, first: int, count: int) -> np.ndarray:
    """Rows first .. first + count of a quantised tensor as bits of its type (count, last), rounded once.

    `raw` are its bytes from row `begin` on.
    """
    assert info.codes is not None
    with np.errstate(over="ignore", invalid="ignore"):  # infinity and NaN are for the reader to judge
        return np.ascontiguousarray(to_bits(info.codes.rows(raw, begin, first, count), info.dtype))


def read_bytes(file: Path, begin: int, into: memoryview) -> None:
    """Fill `into` with the bytes of `file` from `begin` on; the file must hold them."""
    with file.open("rb", buffering=0) as stream:
        stream.seek(begin)
        filled = 0
        while filled < len(into):
            count = stream.readinto(into[filled:])
            assert count, f"{file} ends at byte {begin + filled}"  # headers were checked against the file's size
            filled += count
