"""Evaluation and speed: points with their error bars, and bars against the first model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from minitron_cli.report import text
from minitron_cli.report.draw.style import Style, point
from minitron_cli.report.draw.svg import to_svg
from minitron_cli.report.draw.theme import INK, MUTED, SERIES, canvas
from minitron_cli.report.html import Html

INTERVAL = 1.96  # standard errors on each side: a 95% interval


@dataclass(frozen=True, slots=True)
class Measure:
    """One model's value on one row of a picture, with its standard error (or spread) and ratio to the reference."""

    row: str
    model: str
    value: float
    stderr: float | None = None
    ratio: float | None = None


def points(name: str, measures: Sequence[Measure], look: Mapping[str, Style], x_words: str) -> Html:
    """A row per task, a point per model with its 95% interval; the same colours and marks as everywhere."""
    rows = list(dict.fromkeys(m.row for m in measures))
    models = list(dict.fromkeys(m.model for m in measures))
    step = 0.72 / max(1, len(models))
    with canvas(720, 76 + len(rows) * (18 + 15 * len(models)) + 24 * ((len(models) + 3) // 4)) as figure:
        axes = figure.subplots()
        for i, model in enumerate(models):
            own = [m for m in measures if m.model == model]
            at = [rows.index(m.row) + (i - (len(models) - 1) / 2) * step for m in own]
            style = look.get(model) or Style(SERIES[i % len(SERIES)], "o", "-", False)
            axes.errorbar(
                [m.value for m in own],
                at,
                xerr=[INTERVAL * (m.stderr or 0.0) for m in own],
                linestyle="none",
                ecolor=style.colour,
                elinewidth=1.8,
                capsize=3,
                **point(style, 7),
            )
            axes.plot([], [], linestyle="none", label=model, **point(style, 7))
        for line in range(1, len(rows)):
            axes.axhline(line - 0.5, color=MUTED, linewidth=0.6, alpha=0.5)
        axes.set_yticks(range(len(rows)), rows)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.set_xlabel(x_words)
        figure.legend(loc="outside upper left", ncols=min(4, len(models)))
        label = "; ".join(f"{m.row}, {m.model}: {m.value:.3f}" for m in measures)
        return to_svg(figure, name, f"Scores with 95% intervals. {label}.")


def bars(name: str, measures: Sequence[Measure], look: Mapping[str, Style], x_words: str, width: float = 720) -> Html:
    """A bar per model, in groups by row; each with its value and its ratio to the reference, `stderr` as its spread."""
    groups = list(dict.fromkeys(m.row for m in measures))
    titled = len(groups) > 1
    with canvas(width, 62 + 30 * len(measures) + (28 * len(groups) if titled else 0)) as figure:
        axes = figure.subplots()
        at, ticks, words = 0.0, [], []
        for group in groups:
            if titled:
                axes.annotate(
                    group, (0, at), xytext=(4, 0), textcoords="offset points", va="center", color=INK, fontsize=12
                )
                at += 1
            for m in (m for m in measures if m.row == group):
                _one_bar(axes, at, m, look.get(m.model) or Style(SERIES[0], "o", "-", False))
                ticks.append(at)
                words.append(m.model)
                at += 1
        axes.set_yticks(ticks, words)
        axes.set_ylim(at - 0.4, -0.6)
        axes.set_xlim(0, 1.35 * max(m.value + (m.stderr or 0.0) for m in measures))
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.grid(axis="y", visible=False)
        axes.xaxis.set_major_formatter(lambda value, _: text.count(value) if value else "0")
        axes.set_xlabel(x_words)
        label = "; ".join(f"{m.row}, {m.model}: {m.value:,.0f}" for m in measures)
        return to_svg(figure, name, f"{x_words}. {label}.")


def _one_bar(axes: Any, at: float, m: Measure, style: Style) -> None:
    face = "none" if style.hollow else style.colour
    axes.barh(at, m.value, height=0.66, facecolor=face, edgecolor=style.colour, linewidth=1.5)
    if m.stderr:
        axes.errorbar([m.value], [at], xerr=[m.stderr], ecolor=INK, elinewidth=1.5, capsize=3, linestyle="none")
    words = text.count(m.value) + ("" if m.ratio is None else f"  ({m.ratio:.2f}×)")
    place = (m.value + (m.stderr or 0.0), at)
    axes.annotate(words, place, xytext=(8, 0), va="center", textcoords="offset points", color=INK, fontsize=11)
