"""C = E[x x^T] of every input that a cut axis reaches a linear map by, taken in the pass that scores the axes.

Pruning with `--compensate` folds into each kept input what it can foretell of the dropped ones, for which C is all that
is needed. A layer's moments are written and freed when the layer is done, so that a streamed pass holds one layer's: at
14336 neurons 1.6 GB.
"""

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minitron_cli.checkpoint import moments_file as files
from minitron_cli.checkpoint.disk import need_space
from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.hf.hooks import Site
from minitron_cli.hf.process_group import World
from minitron_cli.hf.readers import EXPERT_FFN
from minitron_cli.importance.identity import require_same
from minitron_cli.importance.statistics import Batch
from minitron_cli.importance.sums import HALVES
from minitron_cli.spec.axes import axes_of, is_head, size

DOUBLE = 2048  # up to this width sums are float64: it costs nothing there
_HEAD = "head of the model"


class SecondMoments:
    """Running sums of x x^T, (half, n, n) per distinct input, in float32 at least."""

    def __init__(self, checkpoint: Checkpoint, output: Path, identity: Mapping[str, Any], world: World) -> None:
        self._checkpoint, self._identity, self._world = checkpoint, identity, world
        self._output = files.moments_path(output)
        self._partial = self._output.with_name(f".{self._output.name}.partial")
        need_space(self._output, disk_bytes(checkpoint))
        self._sums: dict[tuple[int | None, str], Tensor] = {}
        self._sites: dict[tuple[int | None, str], tuple[str, tuple[str, ...]]] = {}
        self._tokens: dict[tuple[int | None, str], np.ndarray] = {}
        self._written: list[files.Input] = []

    def hear(self, site: Site, x: Tensor, batch: Batch) -> None:
        """Take in one site's input: x (batch, token, channel)."""
        key = (site.layer, site.module)
        if key not in self._sites:
            self._sites[key] = (site.axis, (*site.readers, *self._routed_readers(site)))
        self._add(key, x, batch)

    def wants_head(self, layers: Iterable[int]) -> bool:
        """Whether a pass through these layers ends in what the head reads."""
        return self._checkpoint.shape["layer"] - 1 in layers

    def hear_head(self, x: Tensor, batch: Batch) -> None:
        """Take in what the head reads: x (batch, token, hidden)."""
        heads = [m.name for m in self._checkpoint.matches.values() if is_head(m.weight)]
        self._sites[None, _HEAD] = ("hidden", tuple(heads))
        self._add((None, _HEAD), x, batch)

    def _add(self, key: tuple[int | None, str], x: Tensor, batch: Batch) -> None:
        width = x.shape[-1]
        if key not in self._sums:
            dtype = torch.float64 if width <= DOUBLE else torch.float32
            self._sums[key] = torch.zeros((HALVES, width, width), dtype=dtype, device=x.device)
            self._tokens[key] = np.zeros(HALVES, np.int64)
        spans = batch.spans or [(0, x.shape[1])] * len(x)
        for half in range(HALVES):
            rows = range(len(x))[batch.half(half)]
            if not rows:
                continue
            tokens = torch.cat([x[row, slice(*spans[row])] for row in rows])
            _add_gram(self._sums[key][half], tokens)
            self._tokens[key][half] += len(tokens)

    def _routed_readers(self, site: Site) -> list[str]:
        """Experts stored one by one read what the router of their layer reads."""
        matches = self._checkpoint.matches
        if not any(axes_of(matches[name].weight.dims[0]) == ("expert",) for name in site.readers):
            return []
        return [
            m.name
            for m in matches.values()
            if m.layer == site.layer and m.expert is not None and len(m.weight.dims) == 2
            and axes_of(m.weight.dims[-1]) == (site.axis,)
        ]  # fmt: skip

    def close(self, layer: int | None) -> None:
        """Write what was heard in a layer (None: outside of all) and free it."""
        keys = [key for key in self._sums if key[0] == layer]
        if not keys:
            return
        total = self._world.sum_array
        tokens = total(self._tokens[keys[0]])
        found = [(*self._sites[key], total(self._sums.pop(key).cpu().numpy())) for key in keys]
        if self._world.rank == 0:
            self._partial.mkdir(parents=True, exist_ok=True)
            self._written += files.write_inputs(self._partial, layer, found, tokens)

    def finish(self) -> None:
        """Write the rest and the index; the directory takes its name when it is complete."""
        for layer in dict.fromkeys(layer for layer, _ in self._sums):
            self.close(layer)
        if self._world.rank == 0:
            files.write_index(self._partial, self._identity, self._written)
            if self._output.exists():
                shutil.rmtree(self._output)
            self._partial.replace(self._output)


def _add_gram(total: Tensor, tokens: Tensor) -> None:
    """Add x^T x of tokens (token, n) to the sum (n, n), in float32 at least.

    Products of half-precision numbers are exact in float32, so that a GPU may multiply them as they are.
    """
    if tokens.is_cuda and tokens.element_size() == 2:
        total += torch.mm(tokens.T, tokens, out_dtype=torch.float32)
        return
    tokens = tokens.float()
    if total.dtype == tokens.dtype:
        total.addmm_(tokens.T, tokens)
    else:
        total += tokens.T @ tokens


def find(output: Path, identity: Mapping[str, Any], force: bool) -> dict[str, Any]:
    """How the scores name the moments beside them; empty where there are none (or others, that `force` replaces)."""
    path = files.moments_path(output)
    if not (path / files.INDEX).is_file() or force:
        return {}
    require_same(files.open_moments(path).identity, identity, path)
    return {"name": path.name, "sha256": files.moments_digest(path)}


def bytes_of(checkpoint: Checkpoint) -> tuple[int, int]:
    """Bytes that the sums take in memory: (of all layers together, of one layer)."""
    one = [
        sum(HALVES * (8 if width <= DOUBLE else 4) * width * width for width in widths)
        for widths in widths_of(checkpoint).values()
    ]
    return sum(one), max(one, default=0)


def disk_bytes(checkpoint: Checkpoint) -> int:
    """Bytes that they take on disk, with those of the final norm's output."""
    widths = [width for one in widths_of(checkpoint).values() for width in one]
    return sum(4 * width * (width + 1) for width in (*widths, checkpoint.shape["hidden"]))


def widths_of(checkpoint: Checkpoint) -> dict[int, list[int]]:
    """Widths of the distinct inputs of each layer."""
    found: dict[tuple[int, str], int] = {}
    for m in checkpoint.matches.values():
        weight = m.weight
        if weight.junk or len(weight.dims) != 2 or m.layer is None or m.expert is not None:
            continue
        axes = axes_of(weight.dims[-1])
        if axes and EXPERT_FFN not in axes:
            found[m.layer, axes[0]] = size(weight.dims[-1], checkpoint.shape.sizes)
    widths: dict[int, list[int]] = {}
    for (layer, axis), width in found.items():
        # Hidden channels are heard twice a layer (attention and MLP), everything else once.
        widths.setdefault(layer, []).extend([width] * (2 if axis == "hidden" else 1))
    return widths
