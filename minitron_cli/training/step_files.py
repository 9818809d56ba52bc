"""A step checkpoint on disk: safetensors of every rank, and JSON. Nothing in it can run code when it is read.

    step-0001000/shard-00001-of-00004.safetensors   what the first of four ranks held
    step-0001000/state.json                         written last: of which run it is, progress, the global shape of
                                                    every tensor, the sha256 of every shard, and a digest of itself

A tensor that is sharded along its first dimension is the concatenation of its pieces in the order of the shards; one
that is replicated is in the first shard alone. So any number of ranks can read what any other number has written.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minitron_cli.checkpoint.headers import TensorInfo, read_header
from minitron_cli.checkpoint.provenance import file_digest
from minitron_cli.checkpoint.seal import is_altered, is_sealed, sealed
from minitron_cli.checkpoint.tensors import DTYPES, STORAGE_TYPES, bytes_of
from minitron_cli.checkpoint.values import read_bytes
from minitron_cli.checkpoint.writer import TensorOut, header_bytes, reserve
from minitron_cli.errors import MinitronError
from minitron_cli.hf.process_group import World

STATE = "state.json"
FORMAT = 2


class Damaged(MinitronError):
    """A step checkpoint that is incomplete or not what was written; another one may be whole."""


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor of a checkpoint: its global shape, and its pieces in the order of their elements."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    pieces: tuple[TensorInfo, ...]

    def read(self, start: int, into: Tensor) -> None:
        """Fill a contiguous CPU tensor with as many elements, from the flat index `start` on."""
        data, item, at = bytes_of(into), self.dtype.itemsize, 0
        for piece in self.pieces:
            size = prod(piece.shape)
            first, last = max(start, at), min(start + into.numel(), at + size)
            if first < last:
                view = data[(first - start) * item : (last - start) * item]
                read_bytes(piece.file, piece.begin + (first - at) * item, view)
            at += size


def shard_name(rank: int, size: int) -> str:
    return f"shard-{rank + 1:05d}-of-{size:05d}.safetensors"


def write_shard(file: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write one rank's tensors to disk, one at a time; returns the sha256 of the file, taken meanwhile."""
    outs = [TensorOut(name, STORAGE_TYPES[t.dtype], tuple(t.shape)) for name, t in tensors.items()]
    header, digest = header_bytes(outs), hashlib.sha256()
    with file.open("wb") as stream, ThreadPoolExecutor(1) as hasher:

        def put(data: bytes | memoryview) -> None:
            hashed = hasher.submit(digest.update, data)
            stream.write(data)
            hashed.result()

        reserve(stream.fileno(), len(header) + sum(out.num_bytes for out in outs))
        put(header)
        for tensor in tensors.values():
            put(bytes_of(tensor.detach().cpu().contiguous()))
        stream.flush()
        os.fsync(stream.fileno())
    return digest.hexdigest()


def write_state(
    directory: Path, progress: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], files: Mapping[str, str],
    run: str | None = None,
) -> None:  # fmt: skip
    """Write state.json: with it the checkpoint is complete. `run` is the identity of the run that it is of."""
    content = {"format": FORMAT, "run": run, "progress": dict(progress), "tensors": dict(shapes), "files": dict(files)}
    with (directory / STATE).open("w") as stream:
        json.dump(sealed(content), stream)
        stream.flush()
        os.fsync(stream.fileno())


def read_state(path: Path) -> dict[str, Any]:
    """The content of state.json, checked against its own digest. Raises Damaged."""
    file = path / STATE
    if not file.is_file():
        raise Damaged(f"{path} is incomplete: {STATE} is missing")
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise Damaged(f"{file} is damaged: {error}") from error
    if isinstance(content, dict) and "format" not in content and "step" in content:
        raise MinitronError(
            f"{path} was written by an older version of minitron, as pickles, which are not read: they can run code",
            "finish the run with the version that began it, or start again with --overwrite",
        )
    if (
        not isinstance(content, dict)
        or content.get("format") != FORMAT
        or not is_sealed(content)
        or is_altered(content)
    ):
        raise Damaged(f"{file} is damaged: it is not what was written (its digest differs)")
    return content


def open_tensors(path: Path, world: World) -> dict[str, Stored]:
    """Every tensor by name, after the sha256 of every shard was checked, each by one of the ranks. Raises Damaged."""
    content = read_state(path)
    try:
        shapes = {str(name): tuple(map(int, shape)) for name, shape in content["tensors"].items()}
        files = {str(name): str(digest) for name, digest in content["files"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Damaged(f"{path / STATE} is malformed: {error}") from error
    if list(files) != [shard_name(rank, len(files)) for rank in range(len(files))]:
        raise Damaged(f"{path / STATE} is malformed: it lists {', '.join(files) or 'no shards'}")
    _check_shards(path, files, world)
    headers = [read_header(path / name) for name in files]
    stored = {}
    for name, shape in shapes.items():
        pieces = tuple(header[name] for header in headers if name in header)
        if len({p.dtype for p in pieces}) != 1 or sum(prod(p.shape) for p in pieces) != prod(shape):
            raise Damaged(f"{path} is damaged: the shards do not hold all of {name} {list(shape)}")
        stored[name] = Stored(DTYPES[pieces[0].dtype], shape, pieces)
    return stored


def _check_shards(path: Path, files: Mapping[str, str], world: World) -> None:
    """Raise Damaged on all ranks where one has found a shard missing or changed."""
    wrong = torch.zeros(len(files))
    for index in range(world.rank, len(files), world.size):
        name = list(files)[index]
        file = path / name
        wrong[index] = not file.is_file() or file_digest(file) != files[name]
    if named := [name for name, bad in zip(files, world.sum(wrong)) if bad]:
        raise Damaged(f"{path} is damaged: {', '.join(named)} missing or not what was written (sha256 differs)")
