"""From running sums to scores: every pair of aggregations follows from one pass. numpy only.

per channel and sample   sequence aggregation, done while measuring: mean of |x|, l2, variance
per channel              batch aggregation of those over samples: mean, l2, variance     (from sums of s and s^2)
per unit                 l2 over the channels of a unit (head_dim of a head), in the order of NVIDIA's released code
hidden                   summed over all sites of the network; every other axis stays per layer
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from minitron_cli.hf.readers import EXPERT, EXPERT_DAMAGE, EXPERT_LOGITS, EXPERT_ROUTING, ROUTED, layout, ranked_by
from minitron_cli.importance.sums import COUNT, LAYER, MOMENTS, NORM_RATIO, SEQ, Row, Rows
from minitron_cli.spec.axes import SCOPE, Dim
from minitron_cli.spec.family import Family
from minitron_cli.spec.scores import score_shape
from minitron_cli.spec.shape import Shape

BATCH = ("mean", "l2", "var")
EXPERT_SCORES = ("activation", "frequency", "mass", "reap", "output-norm", "damage")
_NO_AXES = (COUNT, EXPERT_ROUTING, EXPERT_DAMAGE, EXPERT_LOGITS, NORM_RATIO)  # sums that are not aggregated as they are


@dataclass(frozen=True, slots=True)
class Aggregation:
    """How statistics become one number: over the batch, and over the sequence (Minitron's notation (batch, seq)).

    `expert` is what ranks whole experts: their activation, aggregated in the same way, or another of EXPERT_SCORES.
    """

    batch: str = "l2"
    seq: str = "mean"
    expert: str = "activation"


def over_samples(sums: np.ndarray, count: int, how: str) -> np.ndarray:
    """Batch aggregation: sums (moment, ...) over `count` samples -> (...). Samples' statistics are never negative."""
    total, square = sums[MOMENTS.index("sum")], sums[MOMENTS.index("square")]
    if how == "l2":
        return np.sqrt(square)
    mean = total / count
    return mean if how == "mean" else np.maximum(square / count - mean * mean, 0.0)


def over_unit(channels: np.ndarray, dim: Dim, axis: str, sizes: Mapping[str, int]) -> np.ndarray:
    """l2 over the channels that belong to one unit of `axis`: (..., channel) -> (..., unit).

    Factors that the axis is scored within (the expert of its neurons) stay: (..., expert, unit).
    """
    (product,) = dim
    lengths = [f if isinstance(f, int) else sizes[f] for f in product]
    lead = channels.ndim - 1
    split = channels.reshape(*channels.shape[:-1], *lengths)
    others = tuple(lead + i for i, factor in enumerate(product) if factor not in (axis, *SCOPE.get(axis, ())))
    return np.sqrt(np.square(split).sum(axis=others)) if others else split


def to_scores(
    raw: Mapping[str, np.ndarray],
    rows: Rows,
    family: Family,
    shape: Shape,
    how: Aggregation = Aggregation(),
    half: int | None = None,
) -> dict[str, np.ndarray]:
    """Scores of every axis in `raw`, float64, shaped as Scores wants them; of one half of the samples if asked.

    `rows[axis]` says in which layer each recorded row is; a layer without the axis keeps zeros.
    """
    count = int(raw[COUNT].sum() if half is None else raw[COUNT][half])
    values = {}
    for axis, array in raw.items():
        if axis in _NO_AXES:
            continue
        sums = array.sum(0) if half is None else array[half]
        if axis == LAYER:
            values[axis] = sums[MOMENTS.index("sum")] / count
            continue
        channels = over_samples(sums[:, SEQ.index(how.seq)], count, how.batch)
        for one in ranked_by(family, axis):
            units = over_unit(channels, layout(family, axis), one, shape.sizes)
            values[one] = units.sum(0) if one == "hidden" else per_layer(units, rows[axis], score_shape(one, shape))
    if EXPERT in values and how.expert != "activation":
        values[EXPERT] = per_layer(
            expert_scores(raw, shape, how.expert, half), rows[EXPERT], score_shape(EXPERT, shape)
        )
    return values


def expert_scores(raw: Mapping[str, np.ndarray], shape: Shape, how: str, half: int | None = None) -> np.ndarray:
    """Scores of whole experts, (row, expert) float64; an expert that no token was routed to scores 0.

    frequency     share of the layer's routings
    mass          share of the layer's routing weights (as they multiply outputs, after any normalisation)
    reap          mean over the tokens routed to it of gate x |output| (REAP, arXiv 2510.13999, eq. 9)
    output-norm   the same without the gate
    damage        root mean square over all tokens of the change of the layer's output when it is dropped
    """
    halves = slice(None) if half is None else slice(half, half + 1)
    tokens, mass, norm, weighted = (raw[EXPERT_ROUTING][halves, 0, ROUTED.index(name)].sum(0) for name in ROUTED)
    if how in ("frequency", "mass"):
        part = tokens if how == "frequency" else mass
        return np.asarray(part / np.maximum(part.sum(-1, keepdims=True), np.finfo(float).tiny))
    if how == "damage":
        squares = raw[EXPERT_DAMAGE][halves, 0, 0].sum(0)
        return np.sqrt(squares / np.maximum(tokens.sum(-1, keepdims=True) / shape["expert_active"], 1))
    return np.asarray((weighted if how == "reap" else norm) / np.maximum(tokens, 1))


def per_layer(units: np.ndarray, rows: Sequence[Row], size: tuple[int, ...]) -> np.ndarray:
    """Rows at their layers: (row, unit) -> (layer, unit). A layer recorded at several places sums them."""
    result = np.zeros(size)
    np.add.at(result, [row.layer for row in rows], units)
    return result
