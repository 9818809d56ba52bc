"""Depth curves: the metric against the first layer of the block that was dropped."""

from collections.abc import Sequence
from typing import Any

from minitron_cli.report import text
from minitron_cli.report.draw.svg import to_svg
from minitron_cli.report.draw.theme import DASHES, INK, MARKERS, MUTED, SERIES, canvas
from minitron_cli.report.html import Html
from minitron_cli.report.read.depth import METRIC_WORDS, DepthCurve


def blocks(name: str, curves: Sequence[DepthCurve], label: str) -> Html:
    """One line per block size of one metric, the least harmful block marked, the full model as a line."""
    metric = curves[0].metric
    with canvas(720, 320) as figure:
        axes = figure.subplots()
        for i, curve in enumerate(curves):
            words = "1 layer" if curve.size == 1 else f"{curve.size} layers"
            axes.plot(
                range(len(curve.values)),
                curve.values,
                color=SERIES[i % len(SERIES)],
                marker=MARKERS[i % len(MARKERS)],
                markersize=4.5,
                linestyle=DASHES[i % len(DASHES)],
                label=f"without {words}",
            )
            axes.plot(
                [curve.best],
                [curve.values[curve.best]],
                marker="o",
                markersize=13,
                markerfacecolor="none",
                markeredgecolor=INK,
                markeredgewidth=1.6,
                linestyle="none",
            )
        _full(axes, curves)
        axes.set_xlabel("first layer of the block that was left out")
        axes.set_ylabel(METRIC_WORDS.get(metric, f"accuracy on {metric}"))
        axes.xaxis.set_major_locator(_whole_numbers())
        axes.legend()
        return to_svg(figure, name, label)


def greedy(name: str, curve: DepthCurve, label: str) -> Html:
    """One layer after the other is left out, each the least harmful of those that are left."""
    with canvas(720, 280) as figure:
        axes = figure.subplots()
        steps = range(1, len(curve.values) + 1)
        axes.plot(steps, curve.values, color=SERIES[0], marker="o", markersize=5)
        for step, layer in zip(steps, curve.order):
            axes.annotate(
                str(layer),
                (step, curve.values[step - 1]),
                xytext=(0, 8),
                textcoords="offset points",
                ha="center",
                color=INK,
                fontsize=11,
            )
        _full(axes, [curve])
        axes.margins(y=0.18)
        axes.set_xlabel("layers left out, one after the other (the number is the layer)")
        axes.set_ylabel(METRIC_WORDS.get(curve.metric, f"accuracy on {curve.metric}"))
        axes.xaxis.set_major_locator(_whole_numbers())
        return to_svg(figure, name, label)


def _full(axes: Any, curves: Sequence[DepthCurve]) -> None:
    full = curves[0].full
    if full is not None:
        axes.axhline(full, color=MUTED, linestyle=(0, (5, 3)), linewidth=1.6, label=f"full model, {text.three(full)}")


def _whole_numbers() -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(integer=True, nbins=16)
