"""Input Gram matrices E[x x^T] of every linear map, taken in the pass that scores the axes.

They are all that `prune --compensate` needs to refit what reads an input to the part that is kept. A layer's matrices
are written and freed when the layer is done: a streamed pass holds those of one layer, 1.6 GB at 14336 neurons.
"""

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minitron_cli.checkpoint import moments_file as files
from minitron_cli.checkpoint.atomic import replacing, temporary_beside
from minitron_cli.checkpoint.disk import need_space, write_errors
from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.hf.hooks import Site
from minitron_cli.hf.process_group import World
from minitron_cli.hf.samples import Batch
from minitron_cli.importance.gram_sizes import DOUBLE, disk_bytes
from minitron_cli.importance.identity import require_same
from minitron_cli.importance.statistics import half_of
from minitron_cli.importance.sums import HALVES
from minitron_cli.spec.axes import axes_of, is_head, reads
from minitron_cli.spec.shape import is_routed

_HEAD = "head of the model"
_PANELS, _LEAST_PANEL = 8, 64


Key = tuple[int | None, str, int | None]  # layer, module, expert


class SecondMoments:
    """Running sums of x x^T, (half, n, n) per distinct input, in float32 at least; their upper triangle alone."""

    def __init__(self, checkpoint: Checkpoint, output: Path, identity: Mapping[str, Any], world: World) -> None:
        self._checkpoint, self._identity, self._world = checkpoint, identity, world
        self._scores, self._output = output, files.moments_path(output)
        self._place: tuple[Path, Path] | None = None  # where the first rank writes, and what that is renamed to
        self._stack = ExitStack()
        self._sums: dict[Key, Tensor] = {}
        self._axis_and_readers: dict[Key, tuple[str, tuple[str, ...]]] = {}
        self._tokens: dict[Key, np.ndarray] = {}
        self._written: list[files.Input] = []

    def begin(self) -> None:
        """Before the pass: what it will write must fit on the disk."""
        need_room(self._checkpoint, self._scores)

    def take(self, site: Site, x: Tensor, batch: Batch) -> None:
        """Take in one site's input: x (batch, token, channel)."""
        key = (site.layer, site.module, None)
        if key not in self._axis_and_readers:
            self._axis_and_readers[key] = (site.axis, (*site.readers, *self._routed_readers(site)))
        self._add_samples(key, x, batch)

    def take_expert(self, site: Site, expert: int, tokens: Tensor, inner: Tensor, batch: Batch) -> None:
        """Take in what one expert's down projection reads: inner (n, channel) of tokens (n,) of the flattened batch."""
        key = (site.layer, site.module, expert)
        if key not in self._axis_and_readers:
            matches = self._checkpoint.matches
            readers = tuple(name for name in site.readers if matches[name].expert in (None, expert))
            self._axis_and_readers[key] = (site.axis, readers)
        length = batch.ids.shape[1]
        row, place = tokens // length, tokens % length
        valid = torch.ones_like(row, dtype=torch.bool)
        if batch.spans is not None:
            begin, end = torch.tensor(batch.spans, device=row.device).unbind(1)
            valid = (place >= begin[row]) & (place < end[row])
        for half in range(HALVES):
            self._add(key, half, inner[valid & ((row + batch.first) % HALVES == half)])

    def wants_head(self, layers: Iterable[int]) -> bool:
        """Whether a pass through these layers ends in what the head reads."""
        return self._checkpoint.shape["layer"] - 1 in layers

    def take_head(self, x: Tensor, batch: Batch) -> None:
        """Take in what the head reads: x (batch, token, hidden)."""
        heads = [m.name for m in self._checkpoint.matches.values() if is_head(m.weight)]
        key = (None, _HEAD, None)
        self._axis_and_readers[key] = ("hidden", tuple(heads))
        self._add_samples(key, x, batch)

    def _add_samples(self, key: Key, x: Tensor, batch: Batch) -> None:
        for half in range(HALVES):
            rows = half_of(batch, half)
            if batch.spans is None:
                self._add(key, half, x[rows].flatten(0, 1))
            else:
                spans = zip(x[rows], batch.spans[rows])
                self._add(key, half, torch.cat([x[:0, 0], *(row[slice(*span)] for row, span in spans)]))

    def _add(self, key: Key, half: int, tokens: Tensor) -> None:
        """Add x^T x of tokens (token, n) to one half."""
        width = tokens.shape[-1]
        if key not in self._sums:
            dtype = torch.float64 if width <= DOUBLE else torch.float32
            self._sums[key] = torch.zeros((HALVES, width, width), dtype=dtype, device=tokens.device)
            self._tokens[key] = np.zeros(HALVES, np.int64)
        if len(tokens):
            _add_gram(self._sums[key][half], tokens)
            self._tokens[key][half] += len(tokens)

    def _routed_readers(self, site: Site) -> list[str]:
        """The matrices of experts, which read what the router of their layer reads."""
        matches = self._checkpoint.matches
        if not any(axes_of(matches[name].weight.dims[0]) == ("expert",) for name in site.readers):
            return []
        return [
            m.name
            for m in matches.values()
            if m.layer == site.layer and is_routed(m.weight) and reads(m.weight) == (site.axis,)
        ]

    def close(self, layer: int | None) -> None:
        """Write the sums of a layer (None: outside of all) and free them."""
        keys = [key for key in self._sums if key[0] == layer]
        if not keys:
            return
        total = self._world.sum_array
        found = []
        for key in keys:
            axis, readers = self._axis_and_readers[key]
            tokens, sums = total(self._tokens[key]), total(self._sums.pop(key).cpu().numpy())
            found.append((files.Input(axis, layer, readers, (int(tokens[0]), int(tokens[1])), expert=key[2]), sums))
        if self._world.rank == 0:
            self._place = self._place or self._stack.enter_context(temporary_beside(self._output))
            with write_errors(self._output):
                self._written += files.write_inputs(self._place[0], layer, found)

    def finish(self) -> None:
        """Write the rest and the index; the directory takes its name when it is complete."""
        for layer in dict.fromkeys(key[0] for key in self._sums):
            self.close(layer)
        if self._place is not None:
            directory, target = self._place
            with write_errors(self._output):
                files.write_index(directory, self._identity, self._written)
                with replacing(target):
                    directory.rename(target)
            self.discard()

    def discard(self) -> None:
        """Remove what has been written and is not finished: an interrupted pass is not continued."""
        self._stack.close()


def _add_gram(total: Tensor, tokens: Tensor) -> None:
    """Add the upper triangle of x^T x to the sum (n, n), in float32 at least: tokens (token, n).

    One panel of rows after the other, from its diagonal on: little more than half of all products. Products of
    half-precision numbers are exact in float32, so that a GPU may multiply them as they are.
    """
    half = tokens.is_cuda and tokens.element_size() == 2
    tokens = tokens if half else tokens.float()
    width = tokens.shape[1]
    step = max(_LEAST_PANEL, -(-width // _PANELS))
    for first in range(0, width, step):
        left, right = tokens[:, first : first + step].T, tokens[:, first:]
        part = total[first : first + step, first:]
        if half:
            part += torch.mm(left, right, out_dtype=torch.float32)
        elif part.dtype == tokens.dtype:
            part.addmm_(left, right)
        else:
            part += left @ right


def are_there(output: Path) -> bool:
    """Whether Gram matrices stand beside the scores `output`, of whatever pass."""
    return (files.moments_path(output) / files.INDEX).is_file()


def need_room(checkpoint: Checkpoint, output: Path) -> None:
    """Refuse where the disk cannot take the matrices that are to stand beside the scores `output`."""
    need_space(files.moments_path(output), disk_bytes(checkpoint))


def find(output: Path, identity: Mapping[str, Any], force: bool) -> dict[str, Any]:
    """How the scores name the moments beside them; empty where there are none (or others, that `force` replaces)."""
    path = files.moments_path(output)
    if not are_there(output) or force:
        return {}
    require_same(files.open_moments(path).identity, identity, path)
    return {"name": path.name, "sha256": files.moments_digest(path)}
