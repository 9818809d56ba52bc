"""Loss against parameters, and against time where it was measured: measured and refined shapes, and their Pareto
fronts."""

from collections.abc import Callable, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np

from minitron_cli.checkpoint.atomic import atomic_file
from minitron_cli.search.result import Entry, SearchResult, standard_error

# What is drawn: words, colour, and the losses of an entry at that stage.
_STAGES = (
    ("after the cut", "#0072B2", attrgetter("losses")),
    ("after distilling", "#D55E00", attrgetter("refined")),
)


def write_picture(file: Path, result: SearchResult) -> Path:
    """Draw an SVG; the same result gives the same bytes."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    timed = [entry for entry in result.entries if entry.speed is not None]
    with pyplot.rc_context({"svg.hashsalt": "minitron", "font.size": 10, "axes.spines.top": False,
                            "axes.spines.right": False}):  # fmt: skip
        figure, panels = pyplot.subplots(
            1, 2 if timed else 1, figsize=(11 if timed else 7, 4.2), layout="constrained", squeeze=False, sharey=True
        )
        _panel(panels[0][0], result, result.entries, lambda e: e.candidate.parameters / 1e6, "parameters, millions")
        panels[0][0].set_ylabel(f"held-out loss, {result.unit}")
        panels[0][0].legend(frameon=False)
        if timed:
            _panel(panels[0][1], result, timed, lambda e: e.speed.slowest_ms if e.speed else 0.0,
                   "milliseconds to the last token")  # fmt: skip
        with atomic_file(file) as temporary:
            figure.savefig(temporary, format="svg", metadata={"Date": None})
        pyplot.close(figure)
    return file


def _panel(axes: Any, result: SearchResult, entries: Sequence[Entry], x: Callable[[Entry], float], label: str) -> None:
    for words, colour, losses in _STAGES:
        _scatter(axes, [(x(e), found) for e in entries if (found := losses(e)) is not None], words, colour)
    if result.source_loss is not None:
        axes.axhline(result.source_loss, color="#666666", linestyle=":", linewidth=1, label="the source")
    axes.set_xlabel(label)


def _scatter(axes: Any, points: Sequence[tuple[float, np.ndarray]], label: str, colour: str) -> None:
    """Means with their standard errors over held-out windows, and the front as steps."""
    if not points:
        return
    x, y = [at for at, _ in points], [float(losses.mean()) for _, losses in points]
    errors = [standard_error(losses) for _, losses in points]
    axes.errorbar(x, y, yerr=errors, fmt="o", color=colour, markersize=5, capsize=2, linewidth=1, label=label)
    front = pareto(list(zip(x, y)))
    axes.step([p[0] for p in front], [p[1] for p in front], where="post", color=colour, linewidth=1, alpha=0.5)


def pareto(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other beats in both size and loss, by ascending size."""
    front: list[tuple[float, float]] = []
    for point in sorted(points):
        if not front or point[1] < front[-1][1]:
            front.append(point)
    return front
