"""Trimming: the source's bytes pass by once, front to back; what stays is gathered and written, front to back.

Stored values pass through bit for bit (but for repairs), whatever their type, and nothing is held but the blocks in
flight: peak memory does not grow with the model. The stages - read, hash, gather, hash, write - run side by side, each
in a thread of its own; all of their work lets go of the interpreter lock.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from minitron_cli.checkpoint.direct import PAGE, Buffers, create, open_reader, write
from minitron_cli.checkpoint.headers import ITEM_BYTES
from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.checkpoint.tensor_digests import Streamed, is_finite
from minitron_cli.checkpoint.values import decode
from minitron_cli.checkpoint.writer import TensorOut, header_bytes, shard_names, shards, write_index
from minitron_cli.errors import MinitronError
from minitron_cli.prune.gather_plan import Cut, Read, reads, rows_within

BLOCK_BYTES = 4 << 20
AHEAD = 3  # blocks that a stage may run ahead of the next
PEAK_BYTES = 4 * (AHEAD + 2) * BLOCK_BYTES
_WORKING = 16  # blocks of bfloat16 that a block's values take in float32 and while they are rounded

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Digests:
    """sha256 of what was read, by tensor, and of what was written, by file name."""

    source: dict[str, str] = field(default_factory=dict)
    target: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Block:
    """Some bytes of a file, uint8 (n,), in the buffer that is theirs; `read` says what they are in the source."""

    file: str
    data: np.ndarray
    buffer: np.ndarray
    read: Read | None = None


def write_model(
    directory: Path | None,
    source: Checkpoint,
    cut: Sequence[Cut],
    max_shard_bytes: int,
    watch: Callable[[], object] = lambda: None,
    finite: bool = True,
) -> Digests:
    """Write all cuts as model.safetensors, or as shards with their index; every byte of the source is read once.

    Without a directory nothing is written: the digests say what would have been. `watch` is called at every block and
    may raise, to end it early. With `finite`, a kept tensor that holds NaN or infinity raises MinitronError.
    """
    digests = Digests()
    buffers = Buffers(BLOCK_BYTES + 2 * PAGE)
    sizes = {file: file.stat().st_size for file in source.files}
    parts = _parts(cut, max_shard_bytes)
    read = _source_hashed(ahead(_read_all(reads(sizes, cut, BLOCK_BYTES), buffers)), source, digests.source)
    if any(one.source.codes is not None for one in cut):
        read = _decoded(ahead(read), buffers)
    values = _watched(read, source) if finite else read
    target = _hashed(ahead(_assembled(parts, ahead(values), buffers)), digests.target)
    lengths = {name: _file_bytes(part) for name, part in zip(shard_names(len(parts)), parts)}
    for file, blocks in groupby(ahead(target), key=lambda block: block.file):
        _write_file(directory / file if directory else None, lengths[file], blocks, buffers, watch)
    if directory:
        write_index(directory, parts)
    return digests


def _parts(cut: Sequence[Cut], max_shard_bytes: int) -> list[list[TensorOut]]:
    """The tensors of each shard; all that one tensor of the source is written as is in the same."""
    written = {c.out.name: c.written for c in cut}
    return [
        [one for out in part for one in written[out.name]] for part in shards([c.out for c in cut], max_shard_bytes)
    ]


def dequantising_bytes(source: Checkpoint) -> int:
    """What is held beside PEAK_BYTES while quantised tensors become values, at the most."""
    coded = [(t.codes, t.shape[-1]) for t in source.tensors.values() if t.codes is not None]
    together = max((codes.num_bytes(codes.rows_together * width) for codes, width in coded), default=0)
    return (AHEAD + 2) * max(together, BLOCK_BYTES) + _WORKING * BLOCK_BYTES if coded else 0


def ahead(items: Iterator[T]) -> Iterator[T]:
    """Run an iterator in a thread of its own, at most AHEAD items ahead; its errors are raised here."""
    with ThreadPoolExecutor(1) as pool:
        pending = deque(pool.submit(next, items, None) for _ in range(AHEAD))
        while (item := pending.popleft().result()) is not None:
            pending.append(pool.submit(next, items, None))
            yield item


def _read_all(program: Iterable[Read], buffers: Buffers) -> Iterator[Block]:
    """Carry out the reads in order."""
    for file, run in groupby(program, key=lambda read: read.file):
        with open_reader(file) as reader:
            for read in run:
                buffer = buffers.take(read.num_bytes + 2 * PAGE)
                yield Block(file.name, reader.read(read.begin, read.num_bytes, buffer), buffer, read)


def _source_hashed(blocks: Iterable[Block], source: Checkpoint, digests: dict[str, str]) -> Iterator[Block]:
    """Pass the blocks on; at the end `digests` has the sha256 of every tensor as it is stored."""
    streamed = Streamed(source.stored.tensors)
    for block in blocks:
        assert block.read is not None
        streamed.update(block.read.file, block.read.begin, block.data.data)
        yield block
    digests.update(streamed.digests())


def _decoded(blocks: Iterable[Block], buffers: Buffers) -> Iterator[Block]:
    """Blocks of values in the place of quantised or transposed ones, several for one where they take more bytes."""
    for block in blocks:
        read = block.read
        if read is None or read.cut is None or read.piece is None or read.cut.source.codes is None:
            yield block
            continue
        source, piece = read.cut.source, read.piece
        width = source.shape[-1]
        row_bytes = piece.row * ITEM_BYTES[source.dtype]
        step = read.num_rows if read.cut.in_one(piece) else max(1, BLOCK_BYTES // row_bytes)
        begin, of_row = (piece.first + read.first_row * piece.row) // width, piece.row // width
        for first in range(0, read.num_rows, step):
            last = min(first + step, read.num_rows)
            inside = rows_within(read.rows, first, last)
            if inside is not None and not len(inside):
                continue
            bits = decode(source, block.data, begin, begin + first * of_row, (last - first) * of_row)
            buffer = buffers.take(bits.nbytes)
            buffer[: bits.nbytes] = bits.reshape(-1).view(np.uint8)
            part = replace(read, first_row=read.first_row + first, num_rows=last - first, rows=inside)
            yield Block(block.file, buffer[: bits.nbytes], buffer, part)
        buffers.give_back(block.buffer)


def _watched(blocks: Iterable[Block], source: Checkpoint) -> Iterator[Block]:
    """Pass the blocks on; one that holds NaN or infinity raises MinitronError."""
    for block in blocks:
        assert block.read is not None
        if block.read.cut is not None and not is_finite(block.read.cut.source.dtype, block.data):
            raise MinitronError(
                f"{block.read.cut.source.name} of {source.path} holds values that are not finite (NaN or infinity)",
                "is the file damaged, or did its training diverge? --force prunes it all the same",
            )
        yield block


def _hashed(blocks: Iterable[Block], digests: dict[str, str]) -> Iterator[Block]:
    """Pass the blocks on; at the end `digests` has the sha256 of every file."""
    running: dict[str, Any] = {}
    for block in blocks:
        running.setdefault(block.file, hashlib.sha256()).update(block.data.data)
        yield block
    digests.update({file: digest.hexdigest() for file, digest in running.items()})


def _assembled(parts: Sequence[Sequence[TensorOut]], blocks: Iterator[Block], buffers: Buffers) -> Iterator[Block]:
    """The target's files, front to back: headers, and what stays of the source's blocks gathered close together.

    All but a file's last block are whole pages, as direct writing wants them: the rest begins the next block.
    """
    kept = _kept(blocks, buffers)
    for file, part in zip(shard_names(len(parts)), parts):
        header = np.frombuffer(header_bytes(part), dtype=np.uint8)
        buffer, end, left = buffers.take(len(header)), len(header), _file_bytes(part) - len(header)
        buffer[:end] = header
        while left:
            block = next(kept)
            assert block.read is not None
            num_bytes = block.read.kept_bytes
            if end + num_bytes > len(buffer):
                whole = end // PAGE * PAGE
                full, buffer = buffer, buffers.take(end - whole + num_bytes)
                buffer[: end - whole] = full[whole:end]
                yield Block(file, full[:whole], full)
                end -= whole
            gather(block.read, block.data, buffer[end : end + num_bytes])
            buffers.give_back(block.buffer)
            end, left = end + num_bytes, left - num_bytes
        yield Block(file, buffer[:end], buffer)
    rest = next(kept, None)  # runs the reading to its end: bytes after the last kept tensor are hashed too
    assert rest is None, "bytes are left that no tensor asked for"


def _kept(blocks: Iterable[Block], buffers: Buffers) -> Iterator[Block]:
    for block in blocks:
        if block.read is not None and block.read.cut is not None:
            yield block
        else:
            buffers.give_back(block.buffer)


def _file_bytes(part: Sequence[TensorOut]) -> int:
    return len(header_bytes(part)) + sum(tensor.num_bytes for tensor in part)


def _write_file(
    file: Path | None, num_bytes: int, blocks: Iterable[Block], buffers: Buffers, watch: Callable[[], object]
) -> None:
    with create(file, num_bytes) if file else nullcontext() as descriptor:
        for block in blocks:
            watch()
            if descriptor is not None:
                write(descriptor, block.data.data)
            num_bytes -= len(block.data)
            buffers.give_back(block.buffer)
    assert num_bytes == 0, f"{file}: {num_bytes} bytes are missing"


def gather(read: Read, data: np.ndarray, out: np.ndarray) -> None:
    """What stays of a block, repaired: its bytes (n,) -> `out`, the bytes of the kept rows and columns (m,)."""
    assert read.cut is not None
    assert read.piece is not None
    dtype, piece = read.cut.source.dtype, read.piece
    word = f"u{ITEM_BYTES[dtype]}"
    rows = data.view(word).reshape(-1, *piece.shape[1:])
    kept = out.view(word)
    kept = kept.reshape(read.kept_shape[::-1]).T if read.cut.transposed else kept.reshape(read.kept_shape)
    if piece.change is not None:
        kept[:] = piece.change.apply(rows if read.rows is None else rows[read.rows], dtype, piece.keep[-1])
        return
    _select(rows, (read.rows, *piece.keep[1:]), kept)
    if read.cut.repair is not None:
        kept[:] = read.cut.repair.apply(kept, dtype)


def _select(rows: np.ndarray, keep: Sequence[np.ndarray | None], out: np.ndarray) -> None:
    """Write the kept positions along every dimension (None: all of them) to `out`."""
    steps = [(dim, index) for dim, index in enumerate(keep) if index is not None]
    if not steps:
        out[...] = rows
    for step, (dim, index) in enumerate(steps, start=1):
        # The indices are known to lie inside; "clip" spares numpy the copy that it makes to be able to fail.
        rows = np.take(rows, index, axis=dim, out=out if step == len(steps) else None, mode="clip")
