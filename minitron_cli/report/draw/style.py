"""Which colour, marker and line a model has: the same in every picture of a page."""

from dataclasses import dataclass
from typing import Any

from minitron_cli.report.draw.theme import DASHES, MARKERS, SERIES, SURFACE
from minitron_cli.report.read.values import Run


@dataclass(frozen=True, slots=True)
class Style:
    """A model is told by colour and by marker; one that was cut and not trained since is hollow."""

    colour: str
    marker: str
    dash: Any
    hollow: bool

    @property
    def fill(self) -> str:
        return SURFACE if self.hollow else self.colour


# A model that is in a results file and not in the run.
OTHER = Style(SERIES[0], "o", "-", hollow=False)


def styles(run: Run) -> dict[str, Style]:
    """A cut model and the one that is trained from it share a colour, for they are the same size. Models that are in
    results files and not in the run come after those of the run.
    """
    found: dict[str, Style] = {}
    slots: dict[str, int] = {}
    for model in run.models:
        parent = run.model(model.parent)
        shares = parent is not None and parent.verb == "prune" and model.verb != "prune"
        slot = slots[parent.name] if shares and parent is not None else len(set(slots.values()))
        slots[model.name] = slot
        i = slot % len(SERIES)
        found[model.name] = Style(SERIES[i], MARKERS[i], DASHES[i], hollow=model.verb == "prune")
    used = len(set(slots.values()))
    measured = [entry["name"] for results in run.evaluations for entry in results.content.get("models", ())]
    measured += [row["model"] for results in run.benchmarks for row in results.content.get("rows", ())]
    for i, name in enumerate(dict.fromkeys(name for name in measured if name not in found), used):
        place = i % len(SERIES)
        found[name] = Style(SERIES[place], MARKERS[place], DASHES[place], hollow=False)
    return found


def point(style: Style, size: float = 8) -> dict[str, Any]:
    """Keyword arguments of a matplotlib line that shows this model as a point."""
    return {
        "marker": style.marker,
        "markersize": size,
        "color": style.colour,
        "markerfacecolor": style.fill,
        "markeredgecolor": style.colour,
        "markeredgewidth": 2,
    }
