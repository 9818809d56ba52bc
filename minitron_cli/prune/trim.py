"""Trimming: the tensors that a plan leaves, gathered from the source's bytes block by block.

Nothing here knows a dtype beyond its width, so bf16 and fp8 pass through bit for bit, and nothing is held but the
blocks in flight: peak memory does not grow with the model.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from math import prod
from pathlib import Path

import numpy as np

from minitron_cli.checkpoint.headers import ITEM_BYTES, TensorInfo
from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.checkpoint.writer import TensorOut, header_bytes, shard_names, shards, write_index
from minitron_cli.errors import MinitronError
from minitron_cli.prune.repairs import Repair, repair_of
from minitron_cli.spec.axes import positions, size
from minitron_cli.spec.family import Match
from minitron_cli.spec.plan import Plan

BLOCK_BYTES = 16 << 20
_IN_FLIGHT = 4  # blocks read ahead of the writer


@dataclass(frozen=True, slots=True)
class Cut:
    """One output tensor: where it comes from, and the positions kept along each dimension (None: all of them)."""

    out: TensorOut
    source: TensorInfo
    keep: tuple[np.ndarray | None, ...]
    repair: Repair | None = None


def cuts(checkpoint: Checkpoint, plan: Plan) -> list[Cut]:
    """Every tensor of the target in the source's order, layers and experts renumbered."""
    found = []
    for match in checkpoint.matches.values():
        layer = None if match.layer is None else plan.target_layer(match.layer)
        if match.weight.junk or (match.layer is not None and layer is None):
            continue
        expert = None if match.expert is None or layer is None else plan.target_expert(layer, match.expert)
        if match.expert is None or expert is not None:
            found.append(_cut(checkpoint, plan, match, layer, expert))
    return sorted(found, key=lambda cut: (cut.source.file, cut.source.begin))


def _cut(checkpoint: Checkpoint, plan: Plan, match: Match, layer: int | None, expert: int | None) -> Cut:
    info, weight = checkpoint.tensors[match.name], match.weight
    kept = plan.resolve(layer, expert)
    shape = tuple(size(dim, plan.target.sizes) for dim in weight.dims)
    place = {axis: i for axis, i in (("layer", layer), ("expert", expert)) if i is not None}
    keep = tuple(positions(dim, plan.source.sizes, kept) for dim in weight.dims)
    repair = repair_of(checkpoint.family, checkpoint.config, plan, weight)
    return Cut(TensorOut(weight.format(**place), info.dtype, shape), info, keep, repair)


def write_model(directory: Path, cut: Sequence[Cut], max_shard_bytes: int) -> None:
    """Write all cuts as model.safetensors, or as shards with their index."""
    by_name = {c.out.name: c for c in cut}
    parts = shards([c.out for c in cut], max_shard_bytes)
    for name, part in zip(shard_names(len(parts)), parts):
        with (directory / name).open("wb", buffering=0) as stream:
            _write_all(stream.fileno(), header_bytes(part))
            for block in _read_ahead(block for out in part for block in _blocks(by_name[out.name])):
                _write_all(stream.fileno(), block)
    write_index(directory, parts)


def _write_all(descriptor: int, data: bytes | memoryview) -> None:
    view = memoryview(data).cast("B")
    while view:
        view = view[os.write(descriptor, view) :]


@dataclass(frozen=True, slots=True)
class Block:
    """Rows `begin..end` of a source tensor, of which `rows` (offsets into them) stay."""

    cut: Cut
    begin: int
    end: int
    rows: np.ndarray | None


def _blocks(cut: Cut) -> Iterator[Block]:
    """Split a tensor into runs of source rows of about BLOCK_BYTES, over the range that is kept at all."""
    num_rows = cut.source.shape[0] if cut.source.shape else 1
    row_bytes = max(1, cut.source.num_bytes // max(1, num_rows))
    step = max(1, BLOCK_BYTES // row_bytes)
    rows = cut.keep[0] if cut.keep else None
    if rows is None:
        for begin in range(0, num_rows, step):
            yield Block(cut, begin, min(begin + step, num_rows), None)
        return
    # Positions ascend except across repeated kept blocks of a concatenation, which ascend too: one sorted run.
    place = 0
    while place < len(rows):
        begin = int(rows[place])
        stop = int(np.searchsorted(rows, begin + step))
        yield Block(cut, begin, int(rows[stop - 1]) + 1, rows[place:stop] - begin)
        place = stop


def _read_ahead(blocks: Iterable[Block]) -> Iterator[memoryview]:
    """Gather blocks in worker threads, a few ahead of the writer, in order."""
    blocks = iter(blocks)
    with ThreadPoolExecutor(2) as pool:
        queue = [pool.submit(_gather, block) for block in islice(blocks, _IN_FLIGHT)]
        while queue:
            done = queue.pop(0).result()
            queue.extend(pool.submit(_gather, block) for block in islice(blocks, 1))
            yield done


def _gather(block: Block) -> memoryview:
    """Read a block's source rows and keep what survives, as contiguous bytes."""
    source = block.cut.source
    item = np.dtype(f"u{ITEM_BYTES[source.dtype]}")
    tail = source.shape[1:]
    row_items = prod(tail)
    data = np.empty((block.end - block.begin, *tail), dtype=item)
    _read_into(source.file, source.begin + block.begin * row_items * item.itemsize, data)
    if block.rows is not None:
        data = data[block.rows]
    for dim, keep in enumerate(block.cut.keep[1:], start=1):
        if keep is not None:
            data = np.take(data, keep, axis=dim)
    if block.cut.repair is not None:
        data = block.cut.repair.apply(data, source.dtype)
    return memoryview(np.ascontiguousarray(data)).cast("B")


def _read_into(file: Path, offset: int, data: np.ndarray) -> None:
    view = memoryview(data).cast("B") if data.size else memoryview(b"")
    descriptor = os.open(file, os.O_RDONLY)
    try:
        while view:
            count = os.preadv(descriptor, [view], offset)
            if count == 0:
                raise MinitronError(f"{file} ended while it was read", "is it being written? fetch it again")
            view, offset = view[count:], offset + count
    finally:
        os.close(descriptor)
