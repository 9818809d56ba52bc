"""Scores to compare activations with: random ones, norms of weights, and weights times activations."""

from collections.abc import Iterable, Mapping
from zlib import crc32

import numpy as np

from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.hf.readers import EXPERT, EXPERT_FFN, READ_AXES, layout, ranked_by
from minitron_cli.importance.aggregate import Aggregation, over_samples, over_unit, per_layer
from minitron_cli.importance.sums import COUNT, SEQ, Rows
from minitron_cli.spec.axes import FOLLOWING_AXES, SCOPE, SCORED_AXES, Dim, axes_of, is_matrix, reading_dim
from minitron_cli.spec.family import Match
from minitron_cli.spec.scores import score_shape


def scored_axes(checkpoint: Checkpoint) -> tuple[str, ...]:
    return tuple(axis for axis in (*SCORED_AXES, *FOLLOWING_AXES) if axis in checkpoint.shape)


def random_scores(checkpoint: Checkpoint, seed: int) -> dict[str, np.ndarray]:
    """Uniform noise in the shape of every axis; an axis' draw does not depend on which others there are."""
    return {
        axis: np.random.default_rng([seed, crc32(axis.encode())]).random(score_shape(axis, checkpoint.shape))
        for axis in scored_axes(checkpoint)
    }


def magnitude_scores(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    """l2 norm of all matrix entries of a unit, readers and writers alike; norm weights and biases are left out."""
    axes = [axis for axis in scored_axes(checkpoint) if axis not in FOLLOWING_AXES]
    return _magnitudes(checkpoint, axes, checkpoint.matches.values()) | following_scores(checkpoint)


def following_scores(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    """For axes beside the text model, which no calibration text reaches: the l2 norm of a neuron's input weights times
    that of its output weights."""
    found = {}
    for axis in (axis for axis in FOLLOWING_AXES if axis in checkpoint.shape):
        having = [m for m in checkpoint.beside.values() if axis in m.weight.axes and is_matrix(m.weight)]
        norms = [_magnitudes(checkpoint, [axis], [match])[axis] for match in having]
        found[axis] = np.prod(norms, axis=0)
    return found


def _magnitudes(checkpoint: Checkpoint, axes: Iterable[str], matches: Iterable[Match]) -> dict[str, np.ndarray]:
    energy = {axis: np.zeros(score_shape(axis, checkpoint.shape)) for axis in axes}
    for match in (match for match in matches if is_matrix(match.weight)):
        square = np.square(_read(checkpoint, match))
        for axis in energy:
            _add_energy(energy[axis], axis, match, square, checkpoint)
    return {axis: np.sqrt(found) for axis, found in energy.items()}


def _add_energy(energy: np.ndarray, axis: str, match: Match, square: np.ndarray, checkpoint: Checkpoint) -> None:
    """Add one tensor's squares to the units of `axis` that they belong to."""
    at = {"layer": match.layer, "expert": match.expert}
    if axis in match.weight.name_axes:
        if None not in (place := tuple(at[a] for a in (*SCOPE.get(axis, ()), axis))):
            energy[place] += square.sum()
        return
    along = [i for i, dim in enumerate(match.weight.dims) if axis in axes_of(dim)]
    if not along:
        return
    scope = [a for a in SCOPE.get(axis, ()) if at[a] is None]  # the expert of a fused tensor is one of its dimensions
    kept = [*(i for a in scope for i, dim in enumerate(match.weight.dims) if axes_of(dim) == (a,)), along[0]]
    others = tuple(i for i in range(square.ndim) if i not in kept)
    per_position = square.sum(axis=others)
    units = _unit_of(match.weight.dims[along[0]], axis, checkpoint.shape.sizes)
    place = tuple(at[a] for a in SCOPE.get(axis, ()) if at[a] is not None)
    target = energy[place]  # a view: what is added stays
    for unit in range(checkpoint.shape[axis]):
        target[..., unit] += per_position[..., units == unit].sum(-1)


def _unit_of(dim: Dim, axis: str, sizes: Mapping[str, int]) -> np.ndarray:
    """Which unit of `axis` each position along a dimension belongs to: (size,), -1 where to none."""
    parts = []
    for product in dim:
        lengths = [f if isinstance(f, int) else sizes[f] for f in product]
        index = np.indices(lengths).reshape(len(lengths), -1)
        parts.append(index[product.index(axis)] if axis in product else np.full(index.shape[1], -1))
    return np.concatenate(parts)


def wanda_scores(
    checkpoint: Checkpoint, raw: Mapping[str, np.ndarray], rows: Rows, how: Aggregation
) -> dict[str, np.ndarray]:
    """|weight| summed over outputs times the activation of its input (Wanda, arXiv 2306.11695, summed to units).

    The activation's norm is whatever `how` says; Wanda's own is (l2, l2). Axes that no weight reads (layers, whole
    experts) keep their activation score.
    """
    count, shape, values = int(raw[COUNT].sum()), checkpoint.shape, {}
    for axis in (*READ_AXES, EXPERT_FFN):
        if axis not in raw:
            continue
        activation = over_samples(raw[axis].sum(0)[:, SEQ.index(how.seq)], count, how.batch)
        columns = np.stack([_column_sums(checkpoint, row.readers) for row in rows[axis]])
        for one in ranked_by(checkpoint.family, axis):
            units = over_unit(activation * columns, layout(checkpoint.family, axis), one, shape.sizes)
            values[one] = units.sum(0) if one == "hidden" else per_layer(units, rows[axis], score_shape(one, shape))
    return values


def _column_sums(checkpoint: Checkpoint, readers: tuple[str, ...]) -> np.ndarray:
    """Sum of |w| over outputs of the weights that read one input: (channel,). Experts stand side by side."""
    sums: dict[int, np.ndarray] = {}
    for name in readers:
        match = checkpoint.matches[name]
        dims = match.weight.dims
        read = reading_dim(match.weight)
        stacked = len(dims) > 2 and axes_of(dims[0]) == (EXPERT,)
        outputs = tuple(i for i in range(len(dims)) if i != read and not (stacked and i == 0))
        columns = np.abs(_read(checkpoint, match)).sum(axis=outputs).reshape(-1)
        place = match.expert or 0
        sums[place] = sums[place] + columns if place in sums else columns
    return np.concatenate([sums[expert] for expert in sorted(sums)])


def _read(checkpoint: Checkpoint, match: Match) -> np.ndarray:
    """One tensor in float64, read from its file alone."""
    from minitron_cli.checkpoint.tensors import read_tensor

    return read_tensor(checkpoint.tensors[match.name]).double().numpy()
