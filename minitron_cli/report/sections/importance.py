"""Importance: per layer and axis, as measured on the calibration text."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from minitron_cli.report import text
from minitron_cli.report.draw import heat
from minitron_cli.report.draw.svg import unique
from minitron_cli.report.html import Html, figure, missing, section, table, tag
from minitron_cli.report.read.depth import METRIC_WORDS
from minitron_cli.report.read.kept import cuts_by
from minitron_cli.report.read.values import Model, Run, ScoresFile
from minitron_cli.spec.axes import SCORED_AXES

# Up to so many units of an axis are shown each in its place; more are shown by rank.
_FEW = 64


def importance(run: Run) -> Html:
    """One block per scores file."""
    if not run.scores:
        return section(
            "importance",
            "Importance",
            missing("No importance scores lie in this run. `minitron importance MODEL --data D` measures them."),
        )
    return section("importance", "Importance", [_block(file, cuts_by(file, run.models)) for file in run.scores])


def _block(file: ScoresFile, cuts: Sequence[Model]) -> Html:
    provenance = file.scores.provenance
    figures = [_axis(file, axis, values, cuts) for axis, values in _ordered(file)]
    return tag("article", tag("h3", file.name), tag("p", _words(provenance), class_="quiet"), figures)


def _ordered(file: ScoresFile) -> list[tuple[str, np.ndarray]]:
    known = [axis for axis in sorted(SCORED_AXES, key=lambda axis: axis != "layer") if axis in file.scores.values]
    return [(axis, np.asarray(file.scores.values[axis], np.float64)) for axis in known]


def _words(provenance: Any) -> str:
    parts = []
    if name := provenance.get("model", {}).get("name"):
        parts.append(f"of {name}")
    if provenance.get("samples"):
        parts.append(f"on {provenance['samples']:,} samples of {provenance.get('seq_len', 0):,} tokens")
    if provenance.get("metric"):
        parts.append(f"by {provenance['metric']}")
    if how := provenance.get("aggregation"):
        parts.append(f"aggregated {how.get('batch')} over samples and {how.get('seq')} over tokens")
    if provenance.get("dtype"):
        parts.append(f"in {provenance['dtype']}")
    return "Measured " + ", ".join(parts) + "." if parts else ""


def _axis(file: ScoresFile, axis: str, values: np.ndarray, cuts: Sequence[Model]) -> Html | None:
    if not np.isfinite(values).all():
        return missing(f"The scores of axis {axis} are not finite.")
    cutting = [m for m in cuts if m.plan is not None and axis in m.plan.kept]
    name, unit = unique("importance", file.name, axis), text.axis_words(axis)
    if axis == "layer":
        return _layers(name, values, cutting[0] if cutting else None, file)
    rows, words = _rows(values), _row_words(values)
    label = f"Importance of {unit} in {file.name}. {_concentration(rows)}"
    if values.shape[-1] <= _FEW and values.ndim == 2:
        cut = cutting[0] if cutting else None
        picture = heat.grid_map(name, rows, words, unit, _dropped(cut, axis, values), label)
        caption = f"Importance of the {unit}, as multiples of their layer's mean"
        caption += f"; crossed out: not kept in {cut.name}." if cut else "."
    else:
        lines = [(m.name, m.plan.target[axis]) for m in cutting if m.plan is not None]
        picture = heat.ranked_map(name, rows, words, unit, lines, label)
        together = ", the experts of a layer averaged rank by rank" if values.ndim == 3 else ""
        caption = (
            f"Importance of {unit}, ranked inside each row{together}, as multiples of the row's mean. "
            f"{_concentration(rows)}"
        )
    return figure(picture, caption + _stability(file, axis), _numbers(rows, words, unit), wide=True)


def _rows(values: np.ndarray) -> np.ndarray:
    """One row a layer, or one for the network: (unit,), (layer, unit) or (layer, expert, unit) -> (row, unit)."""
    if values.ndim == 3:
        return -np.sort(-values, axis=-1).mean(1)
    return values if values.ndim == 2 else values[None]


def _layers(name: str, values: np.ndarray, cut: Model | None, file: ScoresFile) -> Html:
    kept = set(cut.plan.kept["layer"].tolist()) if cut and cut.plan else set(range(len(values)))
    dropped = [layer for layer in range(len(values)) if layer not in kept]
    words, how = _layer_words(file.scores.provenance.get("layer_score") or "influence")
    least, most = int(values.argmin()), int(values.argmax())
    extremes = f"Least: layer {least} ({values[least]:.3f}); most: layer {most} ({values[most]:.3f})."
    caption = f"{how} {extremes}{_stability(file, 'layer')}"
    if cut and dropped:
        caption += f" Hollow: dropped in {cut.name}."
    rows = [[f"layer {i}", f"{v:.4f}"] for i, v in enumerate(values.tolist())]
    numbers = table(("layer", words), rows, caption=f"{words[0].upper()}{words[1:]} per layer")
    picture = heat.layer_bars(name, values, dropped, words, f"{words} of {len(values)} layers. {extremes}")
    return figure(picture, caption, numbers, wide=True)


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


def _row_words(values: np.ndarray) -> list[str]:
    return ["all layers"] if values.ndim == 1 else [f"layer {i}" for i in range(len(values))]


def _dropped(cut: Model | None, axis: str, values: np.ndarray) -> np.ndarray | None:
    """(layer, unit) bool: units that the cut did not keep, in all rows of the source."""
    if cut is None or cut.plan is None or values.ndim != 2:
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


def _numbers(rows: np.ndarray, words: Sequence[str], unit: str) -> Html:
    """Per row: least, mean and most, and how much the best quarter and half hold."""
    quarter, half = top_share(rows, 0.25), top_share(rows, 0.5)
    shown = [
        [word, f"{row.min():.4g}", f"{row.mean():.4g}", f"{row.max():.4g}", text.share(q), text.share(h)]
        for word, row, q, h in zip(words, rows, quarter.tolist(), half.tolist())
    ]
    columns = ("row", "least", "mean", "most", "best quarter holds", "best half holds")
    return table(columns, shown, caption=f"Importance of {unit}, in numbers")
