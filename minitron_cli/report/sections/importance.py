"""Importance: per layer and axis, as measured on the calibration text."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from minitron_cli.hf.readers import EXPERT
from minitron_cli.report import text
from minitron_cli.report.draw import heat
from minitron_cli.report.draw.svg import Picture
from minitron_cli.report.read.depth import METRIC_WORDS
from minitron_cli.report.read.kept import cuts_by
from minitron_cli.report.read.values import Model, Run, ScoresFile
from minitron_cli.report.table import Table

# Up to so many units of an axis are shown each in its place; more are shown by rank.
_FEW = 64


@dataclass(frozen=True, slots=True)
class AxisFigure:
    """One axis of a scores file: `picture` is None where it cannot be drawn, and the caption says why."""

    picture: Picture | None
    caption: str
    numbers: Table | None = None


def measured(file: ScoresFile) -> str:
    """How the scores were measured, in one sentence."""
    known = file.scores.provenance
    parts = [f"of {known['model']['name']}"] if known.get("model", {}).get("name") else []
    if known.get("samples"):
        parts.append(f"on {known['samples']:,} samples of {known.get('seq_len', 0):,} tokens")
    parts += [f"by {known['metric']}"] if known.get("metric") else []
    if how := known.get("aggregation"):
        parts.append(f"aggregated {how.get('batch')} over samples and {how.get('seq')} over tokens")
    parts += [f"in {known['dtype']}"] if known.get("dtype") else []
    return f"Measured {', '.join(parts)}." if parts else ""


def axis_figures(file: ScoresFile, run: Run) -> list[AxisFigure]:
    """Every axis of the file, layers first."""
    cuts = cuts_by(file, run.models)
    order = sorted(file.scores.values, key=lambda axis: (axis != "layer", axis != "hidden"))
    return [_axis(file, axis, np.asarray(file.scores.values[axis], np.float64), cuts) for axis in order]


def expert_choice(files: Sequence[ScoresFile]) -> Table | None:
    """How far files with experts, of one model on other texts, agree on the better half; None where there are not two.

    A cell is the share of one file's better half that is in the other's too, the mean of the layers with experts.
    """
    found = {file.name: np.asarray(file.scores.values[EXPERT]) for file in files if EXPERT in file.scores.values}
    if len(found) < 2 or len({values.shape for values in found.values()}) > 1:
        return None
    better = {}
    for name, values in found.items():
        order = np.argsort(-values[values.any(1)], axis=1, kind="stable")
        better[name] = order[:, : values.shape[1] // 2]
    rows = [[one, *(text.share(_agreement(mine, other)) for other in better.values())] for one, mine in better.items()]
    chance = next(iter(better.values())).shape[1] / next(iter(found.values())).shape[1]
    title = f"Experts: the share of the better half that both keep; by chance {text.share(chance)}"
    return Table(title, ("scores", *better), rows)


def _agreement(mine: np.ndarray, other: np.ndarray) -> float | None:
    """Mean over layers of the share of `mine` that is in `other`: (layer, expert) each."""
    if len(mine) != len(other) or not mine.size:
        return None
    return float(np.mean([np.isin(a, b).mean() for a, b in zip(mine, other)]))


def _axis(file: ScoresFile, axis: str, values: np.ndarray, cuts: Sequence[Model]) -> AxisFigure:
    unit = text.axis(axis)
    if not np.isfinite(values).all():
        return AxisFigure(None, f"The scores of {unit} are not finite.")
    cutting = [m for m in cuts if m.plan is not None and axis in m.plan.kept]
    if axis == "layer":
        return _layers(values, cutting[0] if cutting else None, file)
    rows = -np.sort(-values, axis=-1).mean(1) if values.ndim == 3 else np.atleast_2d(values)
    has = [True] if values.ndim == 1 else values.reshape(len(values), -1).any(1)  # a layer without the axis has zeros
    rows = rows[has]
    words = ["all layers"] if values.ndim == 1 else [f"layer {i}" for i in np.flatnonzero(has)]
    label = f"Importance of {unit} in {file.name}. {_concentration(rows)}"
    if values.ndim == 2 and values.shape[-1] <= _FEW:
        cut = cutting[0] if cutting else None
        dropped = _dropped(cut, axis, values)
        picture = heat.grid_map(rows, words, unit, None if dropped is None else dropped[has], label, file.name, axis)
        caption = f"Importance of the {unit}, as multiples of their layer's mean"
        caption += f"; crossed out: not kept in {cut.name}." if cut else "."
    else:
        lines = [(m.name, m.plan.target[axis]) for m in cutting if m.plan is not None]
        picture = heat.ranked_map(rows, words, unit, lines, label, file.name, axis)
        together = ", the experts of a layer averaged rank by rank" if values.ndim == 3 else ""
        caption = f"Importance of {unit}, ranked inside each row{together}, as multiples of the row's mean. "
        caption += _concentration(rows)
    return AxisFigure(picture, caption + _stability(file, axis), _numbers(rows, words, f"{unit} in {file.name}"))


def _layers(values: np.ndarray, cut: Model | None, file: ScoresFile) -> AxisFigure:
    kept = set(cut.plan.kept["layer"].tolist()) if cut and cut.plan else set(range(len(values)))
    dropped = [layer for layer in range(len(values)) if layer not in kept]
    words, how = _layer_words(file.scores.provenance.get("layer_score") or "influence")
    least, most = int(values.argmin()), int(values.argmax())
    extremes = f"Least: layer {least} ({values[least]:.3f}); most: layer {most} ({values[most]:.3f})."
    caption = f"{how} {extremes}{_stability(file, 'layer')}"
    caption += f" Hollow: dropped in {cut.name}." if cut and dropped else ""
    rows = [[f"layer {i}", f"{v:.4f}"] for i, v in enumerate(values.tolist())]
    numbers = Table(f"{words[0].upper()}{words[1:]} per layer in {file.name}", ("layer", words), rows)
    label = f"{words} of {len(values)} layers. {extremes}"
    return AxisFigure(heat.layer_bars(values, dropped, words, label, file.name), caption, numbers)


def _layer_words(score: str) -> tuple[str, str]:
    """What ranks the layers: a name for the axis, and a sentence."""
    if score == "influence":
        return "block influence", "Block influence of each layer: 1 − cosine between what enters and what leaves it."
    return f"increase in {score}", f"How much worse ({METRIC_WORDS.get(score, score)}) the model is without each layer."


def _stability(file: ScoresFile, axis: str) -> str:
    """Whether more samples would change the ranking: that of the even samples against that of the odd ones."""
    found = (file.scores.provenance.get("stability") or {}).get(axis)
    if not found:
        return ""
    worst = f", {found['worst']:.3f} in the worst row" if found["worst"] < found["spearman"] - 5e-4 else ""
    return f" Even against odd samples, the rankings correlate by (Spearman) {found['spearman']:.3f}{worst}."


def _dropped(cut: Model | None, axis: str, values: np.ndarray) -> np.ndarray | None:
    """(layer, unit) bool: units that the cut did not keep, in all rows of the source."""
    if cut is None or cut.plan is None:
        return None
    gone = np.ones(values.shape, bool)
    for row, index in enumerate(cut.plan.kept[axis]):
        gone[cut.plan.source_layer(row), index] = False
    return gone


def _concentration(rows: np.ndarray) -> str:
    half = top_share(rows, 0.5)
    low, high = float(half.min()), float(half.max())
    span = text.share(low) if high - low < 0.0005 else f"{text.share(low)} to {text.share(high)}"
    return f"The better half holds {span} of the importance."


def top_share(rows: np.ndarray, part: float) -> np.ndarray:
    """Share of each row's sum that its most important `part` of units holds: (row, unit) -> (row,)."""
    ranked = -np.sort(-rows, axis=-1)
    totals = ranked.sum(-1)
    return ranked[:, : max(1, round(part * rows.shape[-1]))].sum(-1) / np.where(totals > 0, totals, 1.0)


def _numbers(rows: np.ndarray, words: Sequence[str], unit: str) -> Table:
    """Per row: least, mean and most, and how much the best quarter and half hold."""
    quarter, half = top_share(rows, 0.25), top_share(rows, 0.5)
    shown = [
        [word, f"{row.min():.4g}", f"{row.mean():.4g}", f"{row.max():.4g}", text.share(q), text.share(h)]
        for word, row, q, h in zip(words, rows, quarter.tolist(), half.tolist())
    ]
    columns = ("row", "least", "mean", "most", "best quarter holds", "best half holds")
    return Table(f"Importance of {unit}", columns, shown)
