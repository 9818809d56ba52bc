"""Read the values of a tensor, all of them or a run, from its bytes: the one place between names and files.

A memory map of the whole file would count in full against a memory limit.
"""

from math import prod
from pathlib import Path

import numpy as np

from minitron_cli.checkpoint.headers import ITEM_BYTES, TensorInfo


def read_bits(info: TensorInfo, first: int = 0, count: int | None = None) -> np.ndarray:
    """`count` elements (None: all) in row-major order from index `first` on, as bits: unsigned integers (count,)."""
    count = prod(info.shape) - first if count is None else count
    bits = np.empty(count, f"u{ITEM_BYTES[info.dtype]}")
    begin, _ = info.span(first, count)
    read_bytes(info.file, begin, memoryview(bits.view(np.uint8).data))
    return bits


def read_bytes(file: Path, begin: int, into: memoryview) -> None:
    """Fill `into` with the bytes of `file` from `begin` on; the file must hold them."""
    with file.open("rb", buffering=0) as stream:
        stream.seek(begin)
        filled = 0
        while filled < len(into):
            count = stream.readinto(into[filled:])
            assert count, f"{file} ends at byte {begin + filled}"  # headers were checked against the file's size
            filled += count
