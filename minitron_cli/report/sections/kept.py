"""What was kept: shares per axis and layer, the layers as a strip, the units in their places."""

import numpy as np

from minitron_cli.report import text
from minitron_cli.report.draw import heat
from minitron_cli.report.draw.svg import unique
from minitron_cli.report.html import Html, figure, missing, section, table, tag
from minitron_cli.report.read.kept import AxisKept, axes_kept, scores_of
from minitron_cli.report.read.values import Model, Run
from minitron_cli.spec.plan import Plan


def kept(run: Run) -> Html:
    """One block per cut."""
    cuts = [m for m in run.models if m.plan is not None]
    if not cuts:
        going = any(m.verb == "prune" for m in run.models)
        words = "The cut is not finished yet." if going else "No model of this run was cut."
        return section("kept", "What was kept", missing(words))
    return section("kept", "What was kept", [_cut(model, run) for model in cuts])


def _cut(model: Model, run: Run) -> Html:
    assert model.plan is not None
    axes = axes_kept(model.plan, scores_of(model, run.scores))
    rows = [*_directions(model.plan), *(_row(axis) for axis in axes)]
    columns = ("axis", "source", "kept", "share of units", "share of importance", "per layer")
    parent = run.model(model.parent)
    shares = ""
    if parent is not None and parent.parameters and model.parameters:
        shares = f" {text.share(model.parameters / parent.parameters)} of its parameters"
    head = tag(
        "h3", f"{model.name} ", tag("span", f"from {model.parent}{':' if shares else ''}{shares}", class_="quiet")
    )
    grid = table(columns, rows, caption=f"What {model.name} kept, axis by axis")
    return tag("article", head, grid, [_picture(model, axis) for axis in axes])


def _directions(plan: Plan) -> list[list[object]]:
    """The row of a residual stream that was turned: it keeps directions, which stand nowhere in the source."""
    if plan.basis is None:
        return []
    source, target = plan.basis.shape
    return [["directions of the residual stream", f"{source:,}", f"{target:,}", text.share(target / source), "–", "–"]]


def _row(axis: AxisKept) -> list[object]:
    share = axis.target / axis.source
    held, spread = "–", "–"
    if axis.importance is not None:
        low, high = float(axis.importance.min()), float(axis.importance.max())
        held = text.share(float(axis.importance.mean()))
        spread = "–" if len(axis.importance) == 1 else f"{text.share(low)} – {text.share(high)}"
    return [text.axis_words(axis.axis), f"{axis.source:,}", f"{axis.target:,}", text.share(share), held, spread]


def _picture(model: Model, axis: AxisKept) -> Html:
    name, unit = unique("kept", model.name, axis.axis), text.axis_words(axis.axis)
    indices = np.flatnonzero(axis.mask[0])
    if axis.axis == "layer":
        gone = sorted(set(range(axis.source)) - set(indices.tolist()))
        words = f"Kept layers: {_ranges(indices.tolist())}. Dropped: {_ranges(gone)}."
        return figure(heat.layer_strip(name, axis.source, indices.tolist(), words), words, wide=True)
    label = f"Kept {unit} of {model.name}: {axis.target} of {axis.source} in each row."
    caption = f"Kept {unit} ({axis.target:,} of {axis.source:,}), each in its place in the source."
    numbers = None
    if axis.importance is not None and len(axis.rows) > 1:
        rows = [[word, text.share(value)] for word, value in zip(axis.rows, axis.importance.tolist())]
        numbers = table(("row", "share of importance kept"), rows, caption=f"Importance of {unit} that was kept")
    return figure(heat.kept_map(name, axis.mask, axis.rows, unit, label), caption, numbers, wide=True)


def _ranges(indices: list[int]) -> str:
    """[0, 1, 2, 5] -> "0–2, 5"."""
    parts: list[list[int]] = []
    for index in indices:
        if parts and parts[-1][-1] == index - 1:
            parts[-1].append(index)
        else:
            parts.append([index])
    return ", ".join(str(p[0]) if len(p) == 1 else f"{p[0]}–{p[-1]}" for p in parts) or "none"
