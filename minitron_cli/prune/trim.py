"""Trimming: the source's bytes pass by once, front to back; what stays is gathered and written, front to back.

Nothing here knows a dtype beyond its width (but for repairs), so bf16 and fp8 pass through bit for bit, and nothing is
held but the blocks in flight: peak memory does not grow with the model. Three stages overlap - read and hash the
source, gather, hash and write the target - each in a thread of its own; all of their work lets go of the interpreter
lock.
"""

import hashlib
import os
import stat
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TypeVar

import numpy as np

from minitron_cli.checkpoint.headers import ITEM_BYTES
from minitron_cli.checkpoint.writer import TensorOut, header_bytes, reserve, shard_names, shards, write_index
from minitron_cli.errors import MinitronError
from minitron_cli.prune.cuts import Cut, Read, reads
from minitron_cli.prune.repairs import from_bits, to_bits

BLOCK_BYTES = 4 << 20
AHEAD = 4  # blocks that a stage may run ahead of the next
PEAK_BYTES = 2 * (AHEAD + 2) * 2 * BLOCK_BYTES  # both stages' blocks, each with a gathered copy

PREFETCH_BYTES = 1 << 30

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Digests:
    """sha256 by file name, of what was read and of what was written."""

    source: dict[str, str] = field(default_factory=dict)
    target: dict[str, str] = field(default_factory=dict)


def write_model(
    directory: Path | None,
    files: Sequence[Path],
    cut: Sequence[Cut],
    max_shard_bytes: int,
    watch: Callable[[], object] = lambda: None,
) -> Digests:
    """Write all cuts as model.safetensors, or as shards with their index; every byte of `files` is read once.

    Without a directory nothing is written: the digests say what would have been. `watch` is called at every block and
    may raise, to end it early.
    """
    digests = Digests()
    sizes = {file: file.stat().st_size for file in files}
    parts = shards([c.out for c in cut], max_shard_bytes)
    source = _read_all(reads(sizes, cut, BLOCK_BYTES), digests.source)
    blocks = _watched(ahead(_gather_all(ahead(source))), watch)
    for name, part in zip(shard_names(len(parts)), parts):
        digests.target[name] = _write_shard(directory / name if directory else Path(os.devnull), part, blocks)
    rest = next(blocks, None)  # runs the reading to its end: files behind the last kept tensor are hashed too
    assert rest is None, "bytes were gathered that no tensor asked for"
    if directory:
        write_index(directory, parts)
    return digests


def _watched(blocks: Iterator[memoryview], watch: Callable[[], object]) -> Iterator[memoryview]:
    for block in blocks:
        watch()
        yield block


def prefetch(files: Sequence[Path]) -> None:
    """Have the kernel fetch the first file, so that the disk works while the processor has other things to do."""
    if hasattr(os, "posix_fadvise") and files:
        with files[0].open("rb", buffering=0) as stream:
            os.posix_fadvise(stream.fileno(), 0, PREFETCH_BYTES, os.POSIX_FADV_WILLNEED)


def ahead(items: Iterator[T], depth: int = AHEAD) -> Iterator[T]:
    """Run an iterator in a thread of its own, at most `depth` items ahead; its errors are raised here."""
    with ThreadPoolExecutor(1) as pool:
        pending = deque(pool.submit(next, items, None) for _ in range(depth))
        while (item := pending.popleft().result()) is not None:
            pending.append(pool.submit(next, items, None))
            yield item


def _write_shard(file: Path, part: Sequence[TensorOut], blocks: Iterator[memoryview]) -> str:
    left = sum(tensor.num_bytes for tensor in part)
    digest = hashlib.sha256()
    with file.open("wb", buffering=0) as stream:
        header = memoryview(header_bytes(part))
        if stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            reserve(stream.fileno(), len(header) + left)
        for block in chain([header], blocks) if left else [header]:
            _write_block(stream.fileno(), block)
            digest.update(block)
            left -= len(block) if block is not header else 0
            if left <= 0:
                break
    assert left == 0, f"{file}: {left} bytes are missing"
    return digest.hexdigest()


def _write_block(descriptor: int, block: memoryview) -> None:
    while block:
        block = block[os.write(descriptor, block) :]


def _read_all(program: Iterable[Read], digests: dict[str, str]) -> Iterator[tuple[Read, np.ndarray]]:
    """Carry out the reads in order; yields those that something is kept of, with their bytes: (read, uint8 (n,))."""
    file, descriptor, digest = None, -1, hashlib.sha256()
    try:
        for read in program:
            if read.file != file:
                if file is not None:
                    digests[file.name] = digest.hexdigest()
                    os.close(descriptor)
                file, digest = read.file, hashlib.sha256()
                descriptor = os.open(file, os.O_RDONLY)
                if hasattr(os, "posix_fadvise"):
                    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)
            data = np.empty(read.num_bytes, dtype=np.uint8)
            _read_into(descriptor, read, data)
            digest.update(data.data)
            if read.cut is not None:
                yield read, data
        if file is not None:
            digests[file.name] = digest.hexdigest()
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def _read_into(descriptor: int, read: Read, data: np.ndarray) -> None:
    view, offset = data.data, read.begin
    while view:
        count = os.preadv(descriptor, [view], offset)
        if count == 0:
            raise MinitronError(f"{read.file} ended while it was read", "is it being written? fetch it again")
        view, offset = view[count:], offset + count


def _gather_all(blocks: Iterable[tuple[Read, np.ndarray]]) -> Iterator[memoryview]:
    return (gather(read, data) for read, data in blocks)


def gather(read: Read, data: np.ndarray) -> memoryview:
    """What stays of a block: its bytes (n,) -> the kept rows and columns, repaired, as contiguous bytes."""
    assert read.cut is not None
    assert read.piece is not None
    dtype, piece = read.cut.source.dtype, read.piece
    rows = data.view(f"u{ITEM_BYTES[dtype]}").reshape(-1, *piece.shape[1:])
    if read.cut.change is not None:
        return _bytes(read.cut.change.apply(rows if read.rows is None else rows[read.rows], dtype, piece.keep[-1]))
    kept = _select(rows, read.rows, piece.keep)
    if piece.partner:
        taken = _select(rows, piece.partner[0], piece.partner)
        kept = to_bits(2 * from_bits(kept, dtype) - from_bits(taken, dtype), dtype)
    if read.cut.repair is not None:
        kept = read.cut.repair.apply(kept, dtype)
    return _bytes(kept)


def _bytes(kept: np.ndarray) -> memoryview:
    return np.ascontiguousarray(kept).reshape(-1).view(np.uint8).data


def _select(rows: np.ndarray, first: np.ndarray | None, keep: Sequence[np.ndarray | None]) -> np.ndarray:
    """The kept rows (None: all of the block's), then the kept positions along every other dimension."""
    kept = rows if first is None else np.take(rows, first, axis=0)
    for dim, index in enumerate(keep[1:], start=1):
        if index is not None:
            kept = np.take(kept, index, axis=dim)
    return kept
