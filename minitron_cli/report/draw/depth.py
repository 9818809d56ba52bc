"""Depth curves: the metric against the first layer of the block that was dropped."""

from collections.abc import Sequence
from typing import Any

from minitron_cli.report import text
from minitron_cli.report.draw.svg import Picture, picture
from minitron_cli.report.draw.theme import DASHES, INK, MARKERS, MUTED, SERIES
from minitron_cli.report.read.depth import DepthCurve


def blocks(file: str, curves: Sequence[DepthCurve], label: str) -> Picture:
    """One line per block size of one metric, the least harmful block circled, the full model as a line."""

    def paint(figure: Any, narrow: bool) -> None:
        axes = figure.subplots()
        for i, curve in enumerate(curves):
            i %= len(SERIES)
            axes.plot(
                range(len(curve.values)), curve.values, color=SERIES[i], marker=MARKERS[i], markersize=4.5,
                linestyle=DASHES[i], label=f"without {'1 layer' if curve.size == 1 else f'{curve.size} layers'}",
            )  # fmt: skip
            ring = {"markerfacecolor": "none", "markeredgecolor": INK, "markeredgewidth": 1.6, "linestyle": "none"}
            axes.plot([curve.best], [curve.values[curve.best]], marker="o", markersize=13, **ring)
        _finish(axes, curves[0], "first layer of the dropped block", narrow)
        axes.legend()

    return picture(paint, label, "depth", file, curves[0].metric, height=320, narrow_height=260)


def greedy(file: str, curve: DepthCurve, label: str) -> Picture:
    """One layer after the other is dropped, each the least harmful of those that are left."""
    steps = range(1, len(curve.values) + 1)

    def paint(figure: Any, narrow: bool) -> None:
        axes = figure.subplots()
        axes.plot(steps, curve.values, color=SERIES[0], marker="o", markersize=5)
        for step, layer, value in zip(steps, curve.order, curve.values):
            axes.annotate(str(layer), (step, value), xytext=(0, 8), textcoords="offset points", ha="center",
                          color=INK, fontsize=11)  # fmt: skip
        axes.margins(y=0.18)
        _finish(axes, curve, "layers dropped so far (the number is the layer)", narrow)

    return picture(paint, label, "greedy", file, curve.metric, height=280, narrow_height=240)


def _finish(axes: Any, curve: DepthCurve, x_words: str, narrow: bool) -> None:
    from matplotlib.ticker import MaxNLocator

    if curve.full is not None:
        words = f"full model, {text.three(curve.full)}"
        axes.axhline(curve.full, color=MUTED, linestyle=(0, (5, 3)), linewidth=1.6, label=words)
    axes.set_xlabel(x_words)
    axes.set_ylabel(curve.words)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8 if narrow else 16))
