"""Evaluation and speed: points with their error bars, and bars against the first model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from minitron_cli.report import text
from minitron_cli.report.draw.style import OTHER, Style, point
from minitron_cli.report.draw.svg import WIDE, Picture, picture
from minitron_cli.report.draw.theme import ACCENT, INK, MUTED
from minitron_cli.report.read.figures import INTERVAL


@dataclass(frozen=True, slots=True)
class Measure:
    """One model's value on one row of a picture, with its standard error (or spread) and ratio to the reference."""

    row: str
    model: str
    value: float
    stderr: float | None = None
    ratio: float | None = None


def points(
    measures: Sequence[Measure], chance: Mapping[str, float], look: Mapping[str, Style], x_words: str, key: str
) -> Picture:
    """A row per task, a point per model with its 95% interval, a line at the chance level where a row has one."""
    rows = list(dict.fromkeys(m.row for m in measures))
    models = list(dict.fromkeys(m.model for m in measures))
    step = 0.72 / max(1, len(models))

    def paint(figure: Any, narrow: bool) -> None:
        axes = figure.subplots()
        for i, model in enumerate(models):
            own = [m for m in measures if m.model == model]
            at = [rows.index(m.row) + (i - (len(models) - 1) / 2) * step for m in own]
            style = look.get(model, OTHER)
            axes.errorbar(
                [m.value for m in own], at, xerr=[INTERVAL * (m.stderr or 0.0) for m in own], linestyle="none",
                ecolor=style.colour, elinewidth=1.8, capsize=3, **point(style, 7),
            )  # fmt: skip
            axes.plot([], [], linestyle="none", label=model, **point(style, 7))
        for i, row in enumerate(rows):
            if row in chance:
                axes.plot([chance[row]] * 2, [i - 0.5, i + 0.5], color=ACCENT, linewidth=1.6, linestyle=(0, (2, 2)))
        if chance:
            axes.plot([], [], color=ACCENT, linewidth=1.6, linestyle=(0, (2, 2)), label="chance")
        for line in range(1, len(rows)):
            axes.axhline(line - 0.5, color=MUTED, linewidth=0.6, alpha=0.5)
        axes.set_yticks(range(len(rows)), [row.replace(", ", "\n") for row in rows] if narrow else rows)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.set_xlabel(x_words)
        figure.legend(loc="outside upper left", ncols=min(2 if narrow else 4, len(models) + bool(chance)))

    entries, body = len(models) + bool(chance), 76 + len(rows) * (18 + 15 * len(models))
    label = "; ".join(f"{m.row}, {m.model}: {m.value:.3f}" for m in measures)
    return picture(
        paint, f"Scores with 95% intervals. {label}.", "points", key,
        height=body + 24 * -(-entries // 4), narrow_height=body + 24 * -(-entries // 2),
    )  # fmt: skip


def bars(
    measures: Sequence[Measure], look: Mapping[str, Style], x_words: str, key: str, width: float = WIDE
) -> Picture:
    """A bar per model, in groups by row; each with its value and its ratio to the reference, `stderr` as its spread."""
    groups = list(dict.fromkeys(m.row for m in measures))
    titled = len(groups) > 1

    def paint(figure: Any, narrow: bool) -> None:
        axes = figure.subplots()
        at, ticks, words = 0.0, [], []
        for group in groups:
            if titled:
                axes.annotate(group, (0, at), xytext=(4, 0), textcoords="offset points", va="center", color=INK)
                at += 1
            for m in (m for m in measures if m.row == group):
                _bar(axes, at, m, look.get(m.model, OTHER))
                ticks.append(at)
                words.append(m.model)
                at += 1
        axes.set_yticks(ticks, words)
        axes.set_ylim(at - 0.4, -0.6)
        axes.set_xlim(0, (1.75 if narrow else 1.35) * max(m.value + (m.stderr or 0.0) for m in measures))
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.grid(axis="y", visible=False)
        axes.xaxis.set_major_formatter(lambda value, _: text.count(value) if value else "0")
        axes.locator_params(axis="x", nbins=4 if narrow else 8)
        axes.set_xlabel(x_words)

    label = "; ".join(f"{m.row}, {m.model}: {m.value:,.0f}" for m in measures)
    height = 62 + 30 * len(measures) + (28 * len(groups) if titled else 0)
    return picture(paint, f"{x_words}. {label}.", "bars", key, x_words, width=width, height=height)


def _bar(axes: Any, at: float, m: Measure, style: Style) -> None:
    face = "none" if style.hollow else style.colour
    axes.barh(at, m.value, height=0.66, facecolor=face, edgecolor=style.colour, linewidth=1.5)
    if m.stderr:
        axes.errorbar([m.value], [at], xerr=[m.stderr], ecolor=INK, elinewidth=1.5, capsize=3, linestyle="none")
    words = text.count(m.value) + ("" if m.ratio is None else f"  ({m.ratio:.2f}×)")
    place = (m.value + (m.stderr or 0.0), at)
    axes.annotate(words, place, xytext=(8, 0), va="center", textcoords="offset points", color=INK, fontsize=11)
