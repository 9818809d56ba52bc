"""Would fewer samples do? The ranking of every axis on one half of the samples against the other half."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from minitron_cli.importance.aggregate import Aggregation, to_scores
from minitron_cli.importance.sums import COUNT, Rows
from minitron_cli.spec.axes import SCOPE
from minitron_cli.spec.family import Family
from minitron_cli.spec.plan import top_k
from minitron_cli.spec.shape import Shape

KEEP = (0.5, 0.75)  # shares of an axis that a typical cut keeps


def report(
    raw: Mapping[str, np.ndarray], rows: Rows, family: Family, shape: Shape, how: Aggregation
) -> dict[str, dict[str, Any]]:
    """Per axis: Spearman correlation of even against odd samples (mean and worst over layers), and the share of units
    that both halves would keep at half and three quarters of the axis. Empty when there is but one sample."""
    if raw[COUNT].min() == 0:
        return {}
    even, odd = (to_scores(raw, rows, family, shape, how, half) for half in (0, 1))
    has = {axis: list(shape.layers_of(axis)) if SCOPE.get(axis) else slice(None) for axis in even}
    return {axis: compare(even[axis][has[axis]], odd[axis][has[axis]]) for axis in even}


def compare(one: np.ndarray, other: np.ndarray) -> dict[str, Any]:
    """Agreement of two rankings along the last axis: (..., unit) each."""
    one, other = one.reshape(-1, one.shape[-1]), other.reshape(-1, other.shape[-1])
    correlations = [spearman(a, b) for a, b in zip(one, other)]
    kept = {}
    for share in KEEP:
        count = max(1, round(share * one.shape[-1]))
        same = [len(np.intersect1d(a, b)) / count for a, b in zip(top_k(one, count), top_k(other, count))]
        kept[f"{share:g}"] = float(np.mean(same))
    return {"spearman": float(np.mean(correlations)), "worst": float(np.min(correlations)), "overlap": kept}


def spearman(one: np.ndarray, other: np.ndarray) -> float:
    """Rank correlation of two (unit,) arrays; ties share their mean rank. Constants agree with constants."""
    a, b = _ranks(one), _ranks(other)
    a, b = a - a.mean(), b - b.mean()
    scale = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / scale) if scale else float(not a.any() and not b.any())


def _ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts - 1) / 2)[inverse]
