"""The family in one picture: size against loss, with an arrow for every cut and every training."""

from collections.abc import Mapping
from typing import Any

from minitron_cli.report import text
from minitron_cli.report.draw.style import Style, point
from minitron_cli.report.draw.svg import Picture, picture
from minitron_cli.report.draw.theme import INK, MUTED
from minitron_cli.report.read.values import Run


def size_against_loss(run: Run, look: Mapping[str, Style], loss: Mapping[str, float]) -> Picture | None:
    """`loss` is what to show of each model; None where fewer than two can be placed."""
    placed = {m.name: (m, (float(m.parameters), loss[m.name])) for m in run.models if m.parameters and m.name in loss}
    if len(placed) < 2:
        return None

    def paint(figure: Any, narrow: bool) -> None:
        axes = figure.subplots()
        for model, place in placed.values():
            if model.parent in placed:
                _arrow(axes, placed[model.parent][1], place, look[model.name], model.verb == "prune")
        for model, place in placed.values():
            axes.plot(*place, linestyle="none", zorder=3, **point(look[model.name], 10))
            weight = "bold" if model.verb != "prune" else "normal"
            side = {"xytext": (0, 9), "ha": "center"} if narrow else {"xytext": (11, 0), "va": "center"}
            axes.annotate(model.name, place, textcoords="offset points", color=INK, fontweight=weight,
                          fontsize=11 if narrow else 12, **side)  # fmt: skip
        axes.set_xlim(0, 1.22 * max(place[0] for _, place in placed.values()))
        axes.margins(y=0.2)
        axes.xaxis.set_major_formatter(lambda value, _: text.count(value) if value else "0")
        axes.set_xlabel("parameters")
        axes.set_ylabel("held-out loss, nats per token")

    summary = "; ".join(f"{name}: {text.count(at[0])} parameters, loss {at[1]:.3f}" for name, (_, at) in placed.items())
    return picture(paint, f"Parameters against held-out loss. {summary}.", "family", width=640, height=370,
                   narrow_height=300)  # fmt: skip


def _arrow(axes: Any, start: tuple[float, float], end: tuple[float, float], style: Style, cut: bool) -> None:
    """Cuts are thin and dashed, training is a solid line in the model's colour."""
    arrow = {
        "arrowstyle": "-|>,head_width=0.28,head_length=0.5",
        "color": MUTED if cut else style.colour,
        "linestyle": (0, (4, 3)) if cut else "-",
        "linewidth": 1.4 if cut else 2,
        "shrinkA": 7,
        "shrinkB": 8,
    }
    axes.annotate("", xy=end, xytext=start, zorder=2, arrowprops=arrow)
