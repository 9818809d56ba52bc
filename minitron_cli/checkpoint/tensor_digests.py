"""Identity of a model by its tensors and config, however many files the tensors are stored in."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from minitron_cli.checkpoint.headers import ITEM_BYTES, TensorInfo
from minitron_cli.checkpoint.reader import Stored, list_tensors, load_whole_config

_BLOCK = 4 << 20
# What saving a model again changes in its config; the type of the weights is that of the tensors.
_NOT_CONTENT = ("transformers_version", "_name_or_path", "dtype", "torch_dtype")
# Bits of +infinity. Every pattern above it is NaN, and so it is with the sign bit set.
_INFINITY = {"F64": 0x7FF0 << 48, "F32": 0x7F80 << 16, "BF16": 0x7F80, "F16": 0x7C00}


def source_digest(path: Path) -> str:
    """Identity of a model directory: its config, and name, type, shape and bytes of every tensor."""
    stored = Stored(load_whole_config(path), list_tensors(path))
    with ThreadPoolExecutor(2) as pool:
        digests = dict(zip(stored.tensors, pool.map(_tensor_digest, stored.tensors.values())))
    return combined(stored, digests)


def combined(stored: Stored, digests: Mapping[str, str]) -> str:
    """`source_digest`, from the sha256 of every tensor's bytes."""
    content = {
        "config": {key: value for key, value in stored.config.items() if key not in _NOT_CONTENT},
        "tensors": {name: [info.dtype, list(info.shape), digests[name]] for name, info in stored.tensors.items()},
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class Streamed:
    """sha256 of every tensor, by its name on disk, of a model whose files are read front to back, in blocks of any
    size."""

    def __init__(self, tensors: Mapping[str, TensorInfo]) -> None:
        self._running = {info.name: hashlib.sha256() for info in tensors.values()}
        self._left: dict[Path, list[TensorInfo]] = {}  # of each file, the next tensor last
        for info in sorted(tensors.values(), key=lambda t: t.begin, reverse=True):
            self._left.setdefault(info.file, []).append(info)

    def update(self, file: Path, begin: int, data: memoryview) -> None:
        """Take in the bytes of `file` from `begin` on; what belongs to no tensor is left out."""
        left, end = self._left.get(file, []), begin + len(data)
        while left and left[-1].begin < end:
            info = left[-1]
            last = info.begin + info.num_bytes
            self._running[info.name].update(data[max(info.begin - begin, 0) : last - begin])
            if last > end:
                return
            left.pop()

    def digests(self) -> dict[str, str]:
        """By tensor name, after the last block."""
        return {name: running.hexdigest() for name, running in self._running.items()}


def is_finite(dtype: str, data: np.ndarray) -> bool:
    """Whether whole elements, as bytes (n,), hold neither NaN nor infinity: two maxima, of signed and unsigned bits."""
    if dtype not in _INFINITY or not len(data):
        return True
    bits, infinity = 8 * ITEM_BYTES[dtype], _INFINITY[dtype]
    signed, unsigned = data.view(f"i{bits // 8}"), data.view(f"u{bits // 8}")
    return int(signed.max()) < infinity and int(unsigned.max()) < infinity | 1 << (bits - 1)


def _tensor_digest(info: TensorInfo) -> str:
    digest = hashlib.sha256()
    for block in _blocks(info):
        digest.update(block)
    return digest.hexdigest()


def _blocks(info: TensorInfo) -> Iterator[memoryview]:
    """A tensor's bytes, front to back, in one buffer."""
    buffer, left = memoryview(bytearray(_BLOCK)), info.num_bytes
    with info.file.open("rb", buffering=0) as stream:
        stream.seek(info.begin)
        while left:
            count = stream.readinto(buffer[: min(left, _BLOCK)])
            assert count, f"{info.file} ends inside {info.name}"  # headers were checked against the file's size
            left -= count
            yield buffer[:count]
