"""A cheap forecast of what a cut costs: how much of each axis' importance it keeps, weighted by measured losses.

Candidate shapes of equal size differ widely in quality. This forecast ranks all of them without touching a weight; the
best few are then measured (see the search package).
"""

from collections.abc import Mapping, Sequence

import numpy as np

from minitron_cli.spec.axes import COUNTED_AXES, SCOPE, SCORED_AXES
from minitron_cli.spec.plan import Plan, from_scores, where_kept
from minitron_cli.spec.scores import Scores
from minitron_cli.spec.shape import Shape


def retained(scores: Scores, source: Shape, target: Shape) -> dict[str, float]:
    """Share of the importance that `target` keeps along each axis that scores rank and it cuts, between 0 and 1.

    Width scores are norms, so their squares add up (energy); the mean is over layers. Block influence is a distance and
    adds up as it is.
    """
    counted = {axis: source[axis] for axis in COUNTED_AXES if axis in source}
    plan = from_scores(scores, source, target.with_(**counted))
    return {axis: _share(scores, plan, axis) for axis in SCORED_AXES if axis in plan.kept}


def _share(scores: Scores, plan: Plan, axis: str) -> float:
    values = np.asarray(scores.require(axis, plan.source), dtype=np.float64)
    if axis == "layer":
        return float(values[plan.kept["layer"]].sum() / max(values.sum(), 1e-30))
    energy = where_kept(values, axis, plan.kept) ** 2
    kept = np.take_along_axis(energy, plan.kept[axis], axis=-1).sum(-1)
    share = kept / np.maximum(energy.sum(-1), 1e-30)
    return float(np.mean(share[list(plan.target.layers_of(axis))] if "layer" in SCOPE.get(axis, ()) else share))


def features(scores: Scores, source: Shape, target: Shape) -> dict[str, float]:
    """-log of the retained share per cut axis: 0 where nothing is lost, additive over axes cut one after the other."""
    return {axis: -float(np.log(max(share, 1e-12))) for axis, share in retained(scores, source, target).items()}


def calibrate(measured: Sequence[tuple[Mapping[str, float], float]]) -> dict[str, float]:
    """Nats of loss per unit of each feature, from (features, loss increase) pairs: least squares, never negative.

    Columns whose weight comes out negative are dropped one at a time, worst first, and the rest solved again.
    """
    axes = sorted({axis for row, _ in measured for axis in row})
    rows = np.array([[row.get(axis, 0.0) for axis in axes] for row, _ in measured])
    losses = np.array([loss for _, loss in measured])
    active = list(range(len(axes)))
    weights = np.zeros(len(axes))
    while active:
        solved = np.linalg.lstsq(rows[:, active], losses, rcond=None)[0]
        if (solved >= 0).all():
            weights[active] = solved
            break
        active.pop(int(np.argmin(solved)))
    return dict(zip(axes, weights.tolist()))


def forecast(found: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """Forecast loss increase in nats per token (in arbitrary units while weights are not calibrated)."""
    return sum(weights.get(axis, 1.0) * value for axis, value in found.items())
