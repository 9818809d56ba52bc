"""Evaluation and speed: points with their error bars, and bars against the first model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from minitron_cli.report import text
from minitron_cli.report.draw.style import Style, point
from minitron_cli.report.draw.svg import to_svg
from minitron_cli.report.draw.theme import INK, MUTED, SERIES, canvas
from minitron_cli.report.html import Html

INTERVAL = 1.96  # standard errors on each side: a 95% interval


@dataclass(frozen=True, slots=True)
class Measure:
    """One model's value on one row of a picture, with its standard error where there is one."""

    row: str
    model: str
    value: float
    stderr: float | None = None


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


def bars(name: str, measures: Sequence[Measure], look: Mapping[str, Style], x_words: str, title: str) -> Html:
    """A horizontal bar per model, with its value and its ratio to the first; `stderr` is drawn as the spread."""
    with canvas(720, 70 + 34 * len(measures)) as figure:
        axes = figure.subplots()
        first = measures[0].value
        for i, m in enumerate(measures):
            style = look.get(m.model) or Style(SERIES[i % len(SERIES)], "o", "-", False)
            axes.barh(
                i,
                m.value,
                height=0.62,
                facecolor="none" if style.hollow else style.colour,
                edgecolor=style.colour,
                linewidth=1.5,
                xerr=m.stderr or None,
                ecolor=INK,
                capsize=3,
            )
            ratio = f"  ({m.value / first:.2f}×)" if i and first else ""
            axes.annotate(
                f"{text.count(m.value)}{ratio}",
                (m.value + (m.stderr or 0.0), i),
                xytext=(8, 0),
                va="center",
                textcoords="offset points",
                color=INK,
                fontsize=11,
            )
        axes.set_yticks(range(len(measures)), [m.model for m in measures])
        axes.set_ylim(len(measures) - 0.5, -0.5)
        axes.set_xlim(0, 1.2 * max(m.value for m in measures))
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.grid(axis="y", visible=False)
        axes.xaxis.set_major_formatter(lambda value, _: text.count(value) if value else "0")
        axes.set_xlabel(x_words)
        if title:
            axes.set_title(title)
        label = "; ".join(f"{m.model}: {m.value:,.0f}" for m in measures)
        return to_svg(figure, name, f"{title or x_words}. {label}.")
