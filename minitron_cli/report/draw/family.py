"""The family in one picture: size against loss, with an arrow for every cut and every training."""

from collections.abc import Mapping
from typing import Any

from minitron_cli.report import text
from minitron_cli.report.draw.style import Style, point
from minitron_cli.report.draw.svg import to_svg
from minitron_cli.report.draw.theme import INK, MUTED, canvas
from minitron_cli.report.html import Html
from minitron_cli.report.read.values import Model, Run


def size_against_loss(run: Run, look: Mapping[str, Style], loss: Mapping[str, float]) -> Html | None:
    """`loss` is what to show of each model; None where fewer than two can be placed."""
    placed = [m for m in run.models if m.parameters and m.name in loss]
    if len(placed) < 2:
        return None
    with canvas(640, 370) as figure:
        axes = figure.subplots()
        for model in placed:
            parent = run.model(model.parent)
            if parent in placed and parent is not None:
                _arrow(axes, _place(parent, loss), _place(model, loss), look[model.name], model.verb == "prune")
        for model in placed:
            axes.plot(*_place(model, loss), linestyle="none", zorder=3, **point(look[model.name], 10))
            _label(axes, model, run, loss)
        axes.set_xlim(0, 1.22 * max(m.parameters or 0 for m in placed))
        axes.margins(y=0.16)
        axes.xaxis.set_major_formatter(lambda value, _: text.count(value) if value else "0")
        axes.set_xlabel("parameters")
        axes.set_ylabel("held-out loss, nats per token")
        summary = "; ".join(f"{m.name}: {text.count(m.parameters)} parameters, loss {loss[m.name]:.3f}" for m in placed)
        return to_svg(figure, "family", f"Parameters against held-out loss. {summary}.")


def _place(model: Model, loss: Mapping[str, float]) -> tuple[float, float]:
    assert model.parameters is not None
    return float(model.parameters), loss[model.name]


def _arrow(axes: Any, start: tuple[float, float], end: tuple[float, float], style: Style, cut: bool) -> None:
    """Cuts are thin and dashed, training is a solid line in the model's colour."""
    axes.annotate(
        "",
        xy=end,
        xytext=start,
        zorder=2,
        arrowprops={
            "arrowstyle": "-|>,head_width=0.28,head_length=0.5",
            "color": MUTED if cut else style.colour,
            "linestyle": (0, (4, 3)) if cut else "-",
            "linewidth": 1.4 if cut else 2,
            "shrinkA": 7,
            "shrinkB": 8,
        },
    )


def _label(axes: Any, model: Model, run: Run, loss: Mapping[str, float]) -> None:
    """Beside the point; a cut and its repair stand above each other, so the names stay apart."""
    axes.annotate(
        model.name,
        _place(model, loss),
        xytext=(11, 0),
        textcoords="offset points",
        color=INK,
        fontsize=12,
        va="center",
        fontweight="bold" if model.verb != "prune" else "normal",
    )
