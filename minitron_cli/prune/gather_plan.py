"""The geometry of trimming: which rows and columns of which bytes of the source make each tensor of the target."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import numpy as np

from minitron_cli.checkpoint.codes import Transposed
from minitron_cli.checkpoint.headers import ITEM_BYTES, TensorInfo
from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.checkpoint.writer import TensorOut
from minitron_cli.prune.change import Change, ChangeOf
from minitron_cli.prune.repairs import Repair, repair_of
from minitron_cli.prune.to_dense import dense_tensors
from minitron_cli.spec.axes import positions, size
from minitron_cli.spec.family import Match
from minitron_cli.spec.plan import Plan
from minitron_cli.spec.shape import is_routed


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of a source tensor that is cut as one; `first` is the index of its first element, `shape` its own.

    `keep` holds the positions kept along each of its dimensions (None: all of them). A tensor is one piece, but fused
    experts are one piece each: every expert keeps neurons of its own.
    """

    first: int
    shape: tuple[int, ...]
    keep: tuple[np.ndarray | None, ...]
    expert: int | None = None  # of the source, where this is its part of a fused tensor or a tensor of its own
    change: Change | None = None

    @property
    def row(self) -> int:
        """Elements of a row."""
        return prod(self.shape[1:])


@dataclass(frozen=True, slots=True)
class Cut:
    """One output tensor: the pieces of the source tensor it is gathered from, in their order on disk.

    `written` are the tensors that its bytes are written as, in order: itself, or those of a dense model. `transposed`
    says that its matrices are written as they are stored, with rows and columns exchanged; `out` has the shape of this.
    """

    out: TensorOut
    source: TensorInfo
    pieces: tuple[Piece, ...]
    written: tuple[TensorOut, ...]
    repair: Repair | None = None
    transposed: bool = False

    def in_one(self, piece: Piece) -> bool:
        """Whether a piece has to come in one block."""
        return self.transposed or (piece.change is not None and piece.change.whole)


@dataclass(frozen=True, slots=True)
class Read:
    """A run of source bytes; where `cut` is given, `num_rows` whole rows of a piece from `first_row` on.

    `rows` are those of them that stay, as offsets (None: all).
    """

    file: Path
    begin: int
    num_bytes: int
    cut: Cut | None = None
    piece: Piece | None = None
    first_row: int = 0
    num_rows: int = 0
    rows: np.ndarray | None = None

    @property
    def kept_shape(self) -> tuple[int, ...]:
        """The shape of what stays of a cut's rows."""
        assert self.cut is not None
        assert self.piece is not None
        whole = self.cut.out.shape[-len(self.piece.shape) :] or (1,)
        whole = whole[::-1] if self.cut.transposed else whole
        if self.piece.change is not None and self.piece.change.whole:
            return whole
        return (self.num_rows if self.rows is None else len(self.rows), *whole[1:])

    @property
    def kept_bytes(self) -> int:
        assert self.cut is not None
        return prod(self.kept_shape) * ITEM_BYTES[self.cut.source.dtype]


def cuts(checkpoint: Checkpoint, plan: Plan, change_of: ChangeOf) -> list[Cut]:
    """Every tensor of the target in the source's order on disk, layers and experts renumbered."""
    found, dense = [], checkpoint.family.dense if plan.dense else None
    for match in (*checkpoint.matches.values(), *checkpoint.beside.values()):
        layer = None if match.layer is None else plan.target_layer(match.layer)
        if match.weight.junk or (match.layer is not None and layer is None):
            continue
        if dense is not None and not dense.keeps(match.weight):
            continue
        expert = None if match.expert is None or layer is None else plan.target_expert(layer, match.expert)
        if match.expert is None or expert is not None:
            cut = _cut(checkpoint, plan, match, layer, expert)
            pieces = (replace(p, change=change_of(match, p.expert, p.keep, p.shape)) for p in cut.pieces)
            found.append(replace(cut, pieces=tuple(pieces)))
    return sorted(found, key=lambda cut: (cut.source.file, cut.source.begin))


def _cut(checkpoint: Checkpoint, plan: Plan, match: Match, layer: int | None, expert: int | None) -> Cut:
    info, weight = checkpoint.tensors[match.name], match.weight
    shape = tuple(size(dim, plan.target.sizes) for dim in weight.dims)
    place = {axis: i for axis, i in (("layer", layer), ("expert", expert)) if i is not None}
    if is_routed(weight) and expert is None:
        pieces = tuple(_expert_pieces(info, match, plan, layer))
    else:
        kept = plan.resolve(layer, expert)
        keep = tuple(positions(dim, plan.source.sizes, kept) for dim in weight.dims)
        pieces = (Piece(0, info.shape or (1,), keep or (None,), match.expert),)
    if match.name in checkpoint.beside:  # the scale of embeddings, which repairs keep, is not that of images
        beside = TensorOut(match.name, info.dtype, shape)
        return Cut(beside, info, pieces, (beside,))
    out, dense = TensorOut(weight.format(**place), info.dtype, shape), checkpoint.family.dense if plan.dense else None
    tensors = (out, *((out,) if dense is None else dense_tensors(dense, weight, layer, out)))
    out, *written = (replace(tensor, name=checkpoint.on_disk(tensor.name)) for tensor in tensors)
    repair = repair_of(checkpoint.family, checkpoint.config, plan, weight)
    if checkpoint.wrapping is not None and isinstance(info.codes, Transposed) and shape[-1] != shape[-2]:
        out = replace(out, shape=(*shape[:-2], shape[-1], shape[-2]))
        return Cut(out, info, pieces, (out,), repair, transposed=True)
    return Cut(out, info, pieces, tuple(written), repair)


def _expert_pieces(info: TensorInfo, match: Match, plan: Plan, layer: int | None) -> Iterator[Piece]:
    """One piece for each kept expert of a fused tensor (expert, ..)."""
    assert layer is not None, f"{info.name}: experts outside a layer"
    shape = info.shape[1:]
    for new in range(plan.target["expert"]):
        kept = plan.resolve(layer, new)
        keep = tuple(positions(dim, plan.source.sizes, kept) for dim in match.weight.dims[1:])
        expert = plan.source_expert(layer, new)
        yield Piece(expert * prod(shape), shape, keep, expert=expert)


def reads(files: Mapping[Path, int], cut: Iterable[Cut], block_bytes: int) -> Iterator[Read]:
    """Every byte of every file once, front to back, in runs of about `block_bytes` that never split a row.

    `files` maps each file to its size; headers and tensors that go are read too, because they are hashed.
    """
    by_file: dict[Path, list[tuple[Cut, Piece]]] = {file: [] for file in files}
    for one in cut:
        by_file[one.source.file] += [(one, piece) for piece in one.pieces]
    for file, num_bytes in files.items():
        at = 0
        for one, piece in by_file[file]:
            begin, length = one.source.span(piece.first, prod(piece.shape))
            yield from _skipped(file, at, begin, block_bytes)
            yield from _rows(one, piece, block_bytes)
            at = begin + length
        yield from _skipped(file, at, num_bytes, block_bytes)


def _skipped(file: Path, begin: int, end: int, block_bytes: int) -> Iterator[Read]:
    for at in range(begin, end, block_bytes):
        yield Read(file, at, min(block_bytes, end - at))


def _rows(cut: Cut, piece: Piece, block_bytes: int) -> Iterator[Read]:
    together = 1 if cut.source.codes is None else cut.source.codes.rows_together
    assert piece.shape[0] % together == 0, f"{cut.source.name}: a piece ends inside rows that are stored together"
    step = max(together, block_bytes // max(1, piece.row * ITEM_BYTES[cut.source.dtype]) // together * together)
    kept = piece.keep[0]
    if cut.in_one(piece):
        step = piece.shape[0]
    if piece.change is not None and piece.change.whole:
        kept = None  # what a new row is made of is anywhere in the tensor
    for first in range(0, piece.shape[0], step):
        last = min(first + step, piece.shape[0])
        read = Read(cut.source.file, *cut.source.span(piece.first + first * piece.row, (last - first) * piece.row))
        inside = rows_within(kept, first, last)
        if inside is None or len(inside):
            read = replace(read, cut=cut, piece=piece, first_row=first, num_rows=last - first, rows=inside)
        yield read


def rows_within(kept: np.ndarray | None, first: int, last: int) -> np.ndarray | None:
    """Of ascending `kept` rows (None: all) those in first .. last - 1, counted from `first`; None where all stay."""
    if kept is None:
        return None
    inside = kept[np.searchsorted(kept, first) : np.searchsorted(kept, last)] - first
    return inside if len(inside) < last - first else None
