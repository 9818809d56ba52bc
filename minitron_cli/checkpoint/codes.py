"""How the values of a tensor follow from what is stored: where it is quantised, a code for each value and a scale for
each block of them; where it is transposed, the values in another order.

A code stands for one of few numbers, exactly, and is multiplied by its scale in float32.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from math import prod

import numpy as np

from minitron_cli.checkpoint.bits import from_bits
from minitron_cli.checkpoint.headers import ITEM_BYTES, TensorInfo
from minitron_cli.checkpoint.values import read_bits

EXPONENTS = ("U8", "F8_E8M0")  # scales that are powers of two, stored as their exponents
GROUP = 32  # values of a scale in MXFP4
_BIAS = 127
_NO_NUMBER = 255


@dataclass(frozen=True, slots=True)
class Scaled:
    """FP8: E4M3 codes (.., row, column), and a scale for each block of a matrix: (.., row / block, column / block).

    Blocks at the lower and right edge of a matrix may be smaller than `block`.
    """

    scale: TensorInfo
    matrix: tuple[int, int]
    block: tuple[int, int]

    @property
    def rows_together(self) -> int:
        return 1

    def num_bytes(self, count: int) -> int:
        return count

    def rows(self, raw: np.ndarray, begin: int, first: int, count: int) -> np.ndarray:
        """Rows first .. first + count, float32 (count, column): `raw` are the bytes from row `begin` on."""
        (height, width), (tall, wide) = self.matrix, self.block
        values = _looked_up(_e4m3_pairs(), raw[(first - begin) * width :][: count * width]).reshape(count, width)
        row = np.arange(first, first + count)
        line = row // height * -(-height // tall) + row % height // tall  # of the blocks
        across = -(-width // wide)
        scales = _scales(self.scale, line[0] * across, (line[-1] + 1 - line[0]) * across).reshape(-1, across)
        for column in range(across):
            values[:, column * wide : (column + 1) * wide] *= scales[line - line[0], column, None]
        return values


@dataclass(frozen=True, slots=True)
class Packed:
    """MXFP4, transposed: E2M1 codes (expert, column, row / 32, 16), two in a byte, the lower four bits first.

    A scale is that of 32 rows of a column: (expert, column, row / 32).
    """

    scale: TensorInfo
    matrix: tuple[int, int]

    @property
    def rows_together(self) -> int:
        return self.matrix[0]

    def num_bytes(self, count: int) -> int:
        return count // 2

    def rows(self, raw: np.ndarray, begin: int, first: int, count: int) -> np.ndarray:
        """Rows first .. first + count, float32 (count, column): `raw` are the bytes from row `begin` on."""
        (height, width), parts = self.matrix, []
        size, groups = height * width // 2, height // GROUP
        for expert, low, high in _within(first, count, height):
            packed = raw[(expert - begin // height) * size :][:size].reshape(width, height // 2)
            values = _looked_up(_e2m1_pairs(), np.ascontiguousarray(packed[:, low // 2 : -(-high // 2)]))
            values = values.reshape(width, -1)[:, low % 2 :][:, : high - low]
            scales = _scales(self.scale, expert * width * groups, width * groups).reshape(width, groups)
            parts.append((values * scales[:, np.arange(low, high) // GROUP]).T)
        return np.concatenate(parts)


@dataclass(frozen=True, slots=True)
class Transposed:
    """Matrices (.., row, column) of plain numbers that are stored as (.., column, row)."""

    dtype: str
    matrix: tuple[int, int]

    @property
    def scale(self) -> None:
        return None

    @property
    def rows_together(self) -> int:
        return self.matrix[0]

    def num_bytes(self, count: int) -> int:
        return count * ITEM_BYTES[self.dtype]

    def rows(self, raw: np.ndarray, begin: int, first: int, count: int) -> np.ndarray:
        """Rows first .. first + count (count, column): `raw` are the bytes from row `begin` on."""
        (height, width), parts = self.matrix, []
        size = self.num_bytes(height * width)
        for one, low, high in _within(first, count, height):
            stored = raw[(one - begin // height) * size :][:size].view(f"u{self.num_bytes(1)}")
            parts.append(from_bits(stored, self.dtype).reshape(width, height)[:, low:high].T)
        return np.concatenate(parts)


def transposed(info: TensorInfo) -> TensorInfo:
    """A plain tensor with its last two dimensions exchanged, its bytes as they are."""
    assert info.codes is None
    *lead, height, width = info.shape
    return replace(info, shape=(*lead, width, height), codes=Transposed(info.dtype, (width, height)))


def _within(first: int, count: int, height: int) -> Iterator[tuple[int, int, int]]:
    """Rows first .. first + count of matrices of this height: the index of each matrix, and which of its rows."""
    while count:
        matrix, low = divmod(first, height)
        high = min(low + count, height)
        yield matrix, low, high
        first, count = first + high - low, count - (high - low)


def _scales(info: TensorInfo, first: int, count: int) -> np.ndarray:
    """`count` scales in float32 from index `first` on."""
    bits = read_bits(info, int(first), int(count))
    if info.dtype not in EXPONENTS:
        return from_bits(bits, info.dtype).astype(np.float32)
    powers = np.ldexp(np.float32(1), bits.astype(np.int32) - _BIAS)
    return np.where(bits == _NO_NUMBER, np.float32(np.nan), powers)


def _looked_up(pairs: np.ndarray, raw: np.ndarray) -> np.ndarray:
    """What two codes at a time stand for; pairs of codes are one byte of `raw`, or two: -> float32 (code,)."""
    raw = raw.reshape(-1)
    if len(pairs) == 256:
        return np.take(pairs, raw, mode="clip").view(np.float32)
    found = np.empty(len(raw), np.float32)
    even = len(raw) // 2 * 2
    np.take(pairs, raw[:even].view(np.uint16), out=found[:even].view(np.uint64), mode="clip")
    if even < len(raw):
        found[-1] = pairs[raw[-1] : raw[-1] + 1].view(np.float32)[0]
    return found


@cache
def _e4m3_pairs() -> np.ndarray:
    """By two bytes as an integer, the lower one first, the two numbers as one: uint64 (65536,)."""
    code = np.arange(128)
    exponent, mantissa = code >> 3, code & 7
    positive = np.where(exponent, np.ldexp(8 + mantissa, exponent - 10), np.ldexp(mantissa, -9)).astype(np.float32)
    positive[-1] = np.nan  # there is no infinity
    return _pairs(np.concatenate([positive, -positive]))


@cache
def _e2m1_pairs() -> np.ndarray:
    """By one byte, the lower four bits first, the two numbers as one: uint64 (256,)."""
    positive = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
    return _pairs(np.concatenate([positive, -positive]))


def _pairs(numbers: np.ndarray) -> np.ndarray:
    second, first = np.meshgrid(numbers, numbers, indexing="ij")
    return np.stack([first, second], axis=-1).reshape(prod(first.shape), 2).copy().view(np.uint64)[:, 0]
