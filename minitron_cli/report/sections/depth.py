"""Depth curves: how the model fares without each contiguous block of layers."""

from collections.abc import Sequence
from itertools import groupby

from minitron_cli.report import text
from minitron_cli.report.draw import depth as draw
from minitron_cli.report.draw.svg import unique
from minitron_cli.report.html import Html, figure, missing, section, table, tag
from minitron_cli.report.read.depth import METRIC_WORDS, DepthCurve, depth_curves
from minitron_cli.report.read.values import Run, ScoresFile


def depth(run: Run) -> Html:
    """One picture per scores file and metric."""
    blocks = [block for file in run.scores if (block := _file(file))]
    if not blocks:
        blocks = [
            missing(
                "No depth curves were measured in this run. `minitron importance MODEL --data D --depth-block N` "
                "drops every contiguous block of N layers in turn."
            )
        ]
    return section("depth", "Depth curves", blocks)


def _file(file: ScoresFile) -> Html | None:
    curves = depth_curves(file)
    if not curves:
        return None
    pictures = []
    for metric, group in groupby(curves, key=lambda c: c.metric):
        own = list(group)
        if sized := [c for c in own if c.size is not None]:
            pictures.append(_blocks(file, metric, sized))
        pictures += [_greedy(file, c) for c in own if c.size is None]
    return tag("article", tag("h3", file.name), pictures)


def _blocks(file: ScoresFile, metric: str, curves: Sequence[DepthCurve]) -> Html:
    words = METRIC_WORDS.get(metric, f"accuracy on {metric}")
    best = [_best_words(c) for c in curves]
    label = f"{words} of {file.name} against the first layer of the dropped block. {' '.join(best)}"
    columns = ("first layer left out", *(f"block of {c.size}" for c in curves))
    rows = [
        [str(i), *(text.number(float(c.values[i]), ".4f") if i < len(c.values) else "–" for c in curves)]
        for i in range(max(len(c.values) for c in curves))
    ]
    picture = draw.blocks(unique("depth", file.name, metric), curves, label)
    return figure(
        picture,
        f"What is left without each block of neighbouring layers ({words}). {' '.join(best)}",
        table(columns, rows, caption=f"{words} without each block"),
        wide=True,
    )


def _best_words(curve: DepthCurve) -> str:
    assert curve.size is not None
    first, value = curve.best, float(curve.values[curve.best])
    which = f"layer {first}" if curve.size == 1 else f"layers {first}–{first + curve.size - 1}"
    return f"Least harm: without {which} ({text.three(value)})."


def _greedy(file: ScoresFile, curve: DepthCurve) -> Html:
    order = ", ".join(map(str, curve.order))
    label = f"Greedy search over {file.name}: layers left out in the order {order}."
    rows = [[str(i + 1), str(layer), f"{value:.4f}"] for i, (layer, value) in enumerate(zip(curve.order, curve.values))]
    picture = draw.greedy(unique("greedy", file.name, curve.metric), curve, label)
    return figure(
        picture,
        f"The least harmful layer is left out, again and again: {order}.",
        table(("step", "layer", curve.metric), rows, caption="Greedy search"),
        wide=True,
    )
