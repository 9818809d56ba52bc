"""What a cut has kept: shares of units and of importance, per axis and layer."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from minitron_cli.report.read.values import Model, ScoresFile
from minitron_cli.spec.axes import SCOPE
from minitron_cli.spec.plan import Plan, where_kept


@dataclass(frozen=True, slots=True)
class AxisKept:
    """One axis of a plan. `mask` (row, unit) is the share of a unit that was kept: 0 or 1, and between them for neurons
    of experts, whose layer's experts are taken together. Rows are the source layers that stayed, or one row for the
    whole network. `importance` (row,) is the share of the row's summed score that the kept units hold, None without
    the scores that the cut was made by.
    """

    axis: str
    source: int
    target: int
    mask: np.ndarray
    rows: tuple[str, ...]
    importance: np.ndarray | None


def axes_kept(plan: Plan, scores: ScoresFile | None) -> list[AxisKept]:
    """Every axis that the plan cuts, layers first."""
    order = sorted(plan.kept, key=lambda axis: (axis != "layer", axis != "hidden", axis))
    return [_axis(plan, axis, scores) for axis in order]


def _axis(plan: Plan, axis: str, scores: ScoresFile | None) -> AxisKept:
    index, source = plan.kept[axis], plan.source[axis]
    index = index[_layers(plan, axis)] if axis in SCOPE else index[None]
    rows = index.reshape(index.shape[0], -1, index.shape[-1])  # (row, expert or 1, unit)
    mask = np.zeros((*rows.shape[:2], source))
    np.put_along_axis(mask, rows, 1.0, axis=-1)
    importance = None
    values = None if scores is None else scores.scores.values.get(axis)
    if values is not None:
        whole = _source_rows(plan, axis, np.asarray(values, np.float64)).reshape(mask.shape)
        totals = whole.sum((1, 2))
        importance = (whole * mask).sum((1, 2)) / np.where(totals > 0, totals, 1.0)
    return AxisKept(axis, source, plan.target[axis], mask.mean(1), tuple(_row_words(plan, axis)), importance)


def _source_rows(plan: Plan, axis: str, values: np.ndarray) -> np.ndarray:
    """The scores of the rows that a per-layer axis still has: values (layer, ...) -> (target layer, ...)."""
    if axis not in SCOPE:
        return values[None]
    return where_kept(values, axis, plan.kept)[_layers(plan, axis)]


def _layers(plan: Plan, axis: str) -> list[int]:
    """The target layers that have a per-layer axis."""
    return list(plan.target.layers_of(axis))


def _row_words(plan: Plan, axis: str) -> list[str]:
    if axis not in SCOPE:
        return ["all layers" if axis != "layer" else "layers"]
    return [f"layer {plan.source_layer(i)}" for i in _layers(plan, axis)]


def scores_of(model: Model, files: Sequence[ScoresFile]) -> ScoresFile | None:
    """The scores that a model was cut by: those measured on the very weights that it was cut from."""
    source = (model.manifest.get("inputs") or {}).get("model") or {}
    for file in files:
        measured = file.scores.provenance.get("model", {})
        if source.get("digest") and measured.get("digest") == source["digest"]:
            return file
    return None


def cuts_by(file: ScoresFile, models: Sequence[Model]) -> list[Model]:
    """The models that were cut by these scores."""
    return [m for m in models if m.plan is not None and scores_of(m, (file,)) is not None]
