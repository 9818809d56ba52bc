"""Depth curves: how the model fares without each contiguous block of layers."""

from collections.abc import Sequence
from itertools import groupby

from minitron_cli.report import text
from minitron_cli.report.draw import depth as draw
from minitron_cli.report.draw.svg import Picture
from minitron_cli.report.read.depth import DepthCurve, depth_curves
from minitron_cli.report.read.values import ScoresFile
from minitron_cli.report.table import Table

Figure = tuple[Picture, str, Table]  # picture, caption, numbers


def depth_figures(file: ScoresFile) -> list[Figure]:
    """One figure per metric with all its block sizes, and one per greedy search."""
    found = []
    for _, group in groupby(depth_curves(file), key=lambda c: c.metric):
        curves = list(group)
        sized = [c for c in curves if c.size is not None]
        found += [_blocks(file, sized)] if sized else []
        found += [_greedy(file, c) for c in curves if c.size is None]
    return found


def _blocks(file: ScoresFile, curves: Sequence[DepthCurve]) -> Figure:
    words, best = curves[0].words, " ".join(map(_best_words, curves))
    rows = [
        [str(i), *(text.number(float(c.values[i]), ".4f") if i < len(c.values) else text.NOTHING for c in curves)]
        for i in range(max(len(c.values) for c in curves))
    ]
    columns = ("first layer dropped", *(f"block of {c.size}" for c in curves))
    picture = draw.blocks(file.name, curves, f"{words} of {file.name} by the first layer of the dropped block. {best}")
    caption = f"What is left without each block of neighbouring layers ({words}). {best}"
    return picture, caption, Table(f"{words} without each block", columns, rows)


def _best_words(curve: DepthCurve) -> str:
    assert curve.size is not None
    first, value = curve.best, float(curve.values[curve.best])
    which = f"layer {first}" if curve.size == 1 else f"layers {first}–{first + curve.size - 1}"
    return f"Least harm: without {which} ({text.three(value)})."


def _greedy(file: ScoresFile, curve: DepthCurve) -> Figure:
    order = ", ".join(map(str, curve.order))
    rows = [[str(i + 1), str(layer), f"{value:.4f}"] for i, (layer, value) in enumerate(zip(curve.order, curve.values))]
    picture = draw.greedy(file.name, curve, f"Greedy search over {file.name}: layers dropped in the order {order}.")
    caption = f"The least harmful layer is dropped, again and again: {order}."
    return picture, caption, Table("Greedy search", ("step", "layer", curve.metric), rows)
