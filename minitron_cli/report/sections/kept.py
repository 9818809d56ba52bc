"""What was kept: shares per axis and layer, the layers as a strip, the units in their places."""

from dataclasses import dataclass

import numpy as np

from minitron_cli.report import text
from minitron_cli.report.draw import heat
from minitron_cli.report.draw.svg import Picture
from minitron_cli.report.read.kept import AxisKept, axes_kept, scores_of
from minitron_cli.report.read.values import Model, Run
from minitron_cli.report.table import Table


@dataclass(frozen=True, slots=True)
class Cut:
    """One pruned model: its table, that of its text where the vocabulary was cut, and (picture, caption, numbers) per
    axis."""

    model: Model
    heading: str
    table: Table
    spelling: Table | None
    figures: list[tuple[Picture, str, Table | None]]


def cuts(run: Run) -> list[Cut]:
    """Every cut of the run that is finished."""
    return [_cut(model, run) for model in run.models if model.plan is not None]


def _cut(model: Model, run: Run) -> Cut:
    assert model.plan is not None
    axes, parent = axes_kept(model.plan, scores_of(model, run.scores)), run.model(model.parent)
    share = ""
    if parent is not None and parent.parameters and model.parameters:
        share = f": {text.share(model.parameters / parent.parameters)} of its parameters"
    rows = [_row(axis) for axis in axes]
    if model.plan.basis is not None:
        source, target = model.plan.basis.shape
        share_of = text.share(target / source)
        rows.insert(0, ["directions of the residual stream", f"{source:,}", f"{target:,}", share_of, "–", "–"])
    columns = ("axis", "source", "kept", "share of units", "share of importance", "per layer")
    table = Table(f"What {model.name} kept, axis by axis", columns, rows).without_empty_columns()
    figures = [_figure(model, axis) for axis in axes]
    return Cut(model, f"from {model.parent}{share}", table, _spelling(model), figures)


def _spelling(model: Model) -> Table | None:
    """What the text that was counted is in the smaller vocabulary, by domain."""
    domains = model.manifest.get("respelling")
    if not domains:
        return None
    rows = [
        [
            domain,
            text.count(one["tokens"]),
            f"{one['tokens'] / one['bytes']:.4f}" if one["bytes"] else text.NOTHING,
            f"{one['tokens'] * (1 + one['lengthening']) / one['bytes']:.4f}" if one["bytes"] else text.NOTHING,
            *(f"{one[share]:.2%}" for share in ("tokens_changed", "bytes_changed")),
        ]
        for domain, one in domains.items()
    ]
    columns = ("domain", "tokens", "tokens per byte", "in the smaller vocabulary", "tokens that go", "of the bytes")
    return Table(f"The text that the tokens of {model.name} were counted on", columns, rows)


def _row(axis: AxisKept) -> list[str]:
    held, spread = text.NOTHING, text.NOTHING
    if axis.importance is not None:
        low, high = float(axis.importance.min()), float(axis.importance.max())
        held = text.share(float(axis.importance.mean()))
        spread = spread if len(axis.importance) == 1 else f"{text.share(low)} – {text.share(high)}"
    sizes = [f"{axis.source:,}", f"{axis.target:,}", text.share(axis.target / axis.source)]
    return [text.axis(axis.axis), *sizes, held, spread]


def _figure(model: Model, axis: AxisKept) -> tuple[Picture, str, Table | None]:
    unit = text.axis(axis.axis)
    if axis.axis == "layer":
        stay = np.flatnonzero(axis.mask[0]).tolist()
        gone = sorted(set(range(axis.source)) - set(stay))
        words = f"Kept layers: {text.ranges(stay)}. Dropped: {text.ranges(gone)}."
        return heat.layer_strip(axis.source, stay, words, model.name), words, None
    label = f"Kept {unit} of {model.name}: {axis.target} of {axis.source} in each row."
    caption = f"Kept {unit} ({axis.target:,} of {axis.source:,}), each in its place in the source."
    numbers = None
    if axis.importance is not None and len(axis.rows) > 1:
        rows = [[word, text.share(value)] for word, value in zip(axis.rows, axis.importance.tolist())]
        numbers = Table(f"Importance of {unit} that {model.name} kept", ("row", "share of importance kept"), rows)
    return heat.kept_map(axis.mask, axis.rows, unit, label, model.name, axis.axis), caption, numbers
