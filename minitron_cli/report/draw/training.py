"""Training curves: the loss against tokens or FLOPs, with the teacher's line; the mix of the data."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from minitron_cli.report import text
from minitron_cli.report.draw.style import Style
from minitron_cli.report.draw.svg import SMALL, Picture, picture
from minitron_cli.report.draw.theme import DASHES, INK, MARKERS, MUTED, SERIES
from minitron_cli.report.read.curves import graded, mixed
from minitron_cli.report.read.figures import INTERVAL, TeacherLine
from minitron_cli.report.read.values import Model
from minitron_cli.training.metrics import ERROR, SCORE

X_WORDS = {"tokens": "tokens", "flops": "FLOPs"}
_MOST_POINTS = 600
Points = tuple[np.ndarray, np.ndarray]


def loss_curve(model: Model, style: Style, teacher: TeacherLine | None) -> Picture | None:
    """Cross-entropy by tokens, in training (thin, and smoothed) and on held-out text (points), with the teacher's line
    where that is known; None where nothing was written.
    """
    return _curves(model, style, ("ce", "eval_ce"), "nats per token", teacher)


def divergence_curve(model: Model, style: Style) -> Picture | None:
    """The divergence from the teacher that distillation minimises, by tokens; None where there is none."""
    assert model.curve is not None
    if "kd" not in model.curve.logged:
        return None
    return _curves(model, style, ("kd", "eval_kd"), "divergence from the teacher, nats", None)


def score_curves(model: Model) -> Picture | None:
    """Scores between 0 and 1 of the tasks that the student was graded by while it trained, by tokens, with 95%
    intervals; None where there are none.
    """
    assert model.curve is not None
    table = model.curve.evaluated
    shown = {n: table[SCORE + n] for n in graded(table) if np.nanmax(np.abs(table[SCORE + n])) <= 1}
    if not shown:
        return None

    def paint(figure: Any, narrow: bool) -> None:
        axes = figure.subplots()
        for i, (name, values) in enumerate(shown.items()):
            keep, colour = np.isfinite(values), SERIES[i % len(SERIES)]
            errors = INTERVAL * table.get(ERROR + name, np.zeros(len(values)))[keep]
            look = {"linestyle": DASHES[i % len(DASHES)], "marker": MARKERS[i % len(MARKERS)], "markersize": 4}
            axes.errorbar(table["tokens"][keep], values[keep], errors, color=colour, label=name, elinewidth=1, **look)
        _x_axis(axes, "tokens")
        axes.set_ylabel("score")
        axes.legend(loc="best")

    finite = {name: values[np.isfinite(values)] for name, values in shown.items()}
    words = "; ".join(f"{name} from {values[0]:.3f} to {values[-1]:.3f}" for name, values in finite.items())
    label = f"Scores of {model.name} while it trained: {words}."
    return picture(paint, label, "task scores", model.name, width=SMALL, height=290)


def mix_curves(model: Model) -> Picture | None:
    """Shares of the domains, and how far each is above its reference loss, by tokens; None where the mix was fixed."""
    assert model.curve is not None
    table = model.curve.evaluated
    names = mixed(table)
    if not names:
        return None
    shares, excess = (
        {name: thin(table["tokens"], table[f"mix_{what}/{name}"]) for name in names} for what in ("weight", "excess")
    )

    def paint(figure: Any, narrow: bool) -> None:
        for axes, curves, words in zip(
            figure.subplots(2, 1) if narrow else figure.subplots(1, 2),
            (shares, excess),
            ("share of the rows", "excess loss, nats per token"),
        ):
            for i, (name, points) in enumerate(curves.items()):
                look = {"color": SERIES[i % len(SERIES)], "linestyle": DASHES[i % len(DASHES)]}
                axes.plot(*points, **look, marker=MARKERS[i % len(MARKERS)], markersize=4, label=name)
            _x_axis(axes, "tokens")
            axes.set_ylabel(words)
        axes.axhline(0, color=MUTED, linewidth=1)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=2 if narrow else len(names))

    words = "; ".join(
        f"{name} from {shares[name][1][0]:.1%} to {shares[name][1][-1]:.1%}, excess {excess[name][1][0]:.3f} to "
        f"{excess[name][1][-1]:.3f}"
        for name in names
    )
    return picture(paint, f"The mix of {model.name}: {words}.", "mix", model.name, height=290, narrow_height=520)


def _curves(
    model: Model, style: Style, names: tuple[str, str], y_words: str, teacher: TeacherLine | None
) -> Picture | None:
    assert model.curve is not None
    tables = {"training": (model.curve.logged, names[0]), "held-out": (model.curve.evaluated, names[1])}
    shown = {words: thin(t["tokens"], t[name]) for words, (t, name) in tables.items() if name in t}
    shown = {words: found for words, found in shown.items() if len(found[1])}
    if not shown:
        return None

    def paint(figure: Any, narrow: bool) -> str:
        axes = figure.subplots()
        if "training" in shown:
            at, values = shown["training"]
            axes.plot(at, values, color=style.colour, linewidth=1, alpha=0.3)
            axes.plot(at, smooth(values), color=style.colour, linewidth=2, label="training text, smoothed")
        if "held-out" in shown:
            axes.plot(*shown["held-out"], color=INK, marker="o", markersize=4.5, linewidth=1.2, label="held-out text")
        if teacher:
            _teacher(axes, teacher)
        if "kd" in names and all((values > 0).all() for _, values in shown.values()):
            _log_scale(axes)
            return _finish(axes, "tokens", y_words, [], None)
        return _finish(axes, "tokens", y_words, list(shown.values()), teacher)

    parts = [f"{words} text from {values[0]:.4f} to {values[-1]:.4f}" for words, (_, values) in shown.items()]
    parts += [f"the teacher at {teacher.loss:.3f}"] if teacher else []
    label = f"{y_words} of {model.name} against tokens: {'; '.join(parts)}."
    return picture(paint, label, names[0], model.name, width=SMALL, height=290)


def compare_curves(models: Sequence[Model], look: Mapping[str, Style], x: str, teacher: TeacherLine | None) -> Picture:
    """Held-out loss of several models over what they have spent, on one scale."""
    curves = {m.name: thin(m.curve.evaluated[x], m.curve.evaluated["eval_ce"]) for m in models if m.curve}

    def paint(figure: Any, narrow: bool) -> str:
        axes = figure.subplots()
        for name, points in curves.items():
            style = look[name]
            axes.plot(*points, color=style.colour, marker=style.marker, markersize=5, linestyle=style.dash, label=name)
        if teacher:
            _teacher(axes, teacher)
        return _finish(axes, x, "held-out loss, nats per token", list(curves.values()), teacher)

    words = ", ".join(f"{name} ends at {values[-1]:.3f}" for name, (_, values) in curves.items())
    return picture(paint, f"Held-out loss against {X_WORDS[x]}: {words}.", "compare", x, width=540, height=330,
                   narrow_height=280)  # fmt: skip


def thin(at: np.ndarray, values: np.ndarray) -> Points:
    """At most some hundred points: neighbours become their mean, so that no trend is lost. (n,) -> (<= 600,) each."""
    keep = np.isfinite(values)
    at, values = at[keep], values[keep]
    if len(values) <= _MOST_POINTS:
        return at, values
    parts = np.array_split(np.arange(len(values)), _MOST_POINTS)
    return np.array([at[p].mean() for p in parts]), np.array([values[p].mean() for p in parts])


def smooth(values: np.ndarray, share: float = 0.015) -> np.ndarray:
    """A Gaussian mean, `share` of the run wide, without a lag and without a bend at the ends: (n,) -> (n,)."""
    width = max(1.0, share * len(values))
    reach = min(int(np.ceil(3 * width)), len(values) - 1)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / width) ** 2)
    weight = np.convolve(np.ones(len(values)), kernel)[reach : reach + len(values)]
    return np.convolve(values, kernel)[reach : reach + len(values)] / weight


def _teacher(axes: Any, teacher: TeacherLine) -> None:
    axes.axhline(teacher.loss, color=MUTED, linestyle=(0, (5, 3)), linewidth=1.6, label=teacher.words)


def _log_scale(axes: Any) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5), numticks=12))
    axes.yaxis.set_major_formatter(lambda value, _: text.three(value))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _finish(axes: Any, x: str, y_words: str, curves: Sequence[Points], teacher: TeacherLine | None) -> str:
    """Limits, labels and legend. The first steps of a training from scratch would flatten all that follows: the scale
    ends below them, with a mark; returns the words for it.
    """
    note = _limit(axes, curves, teacher) if curves else ""
    axes.set_xlim(left=-0.015 * axes.get_xlim()[1])  # so that the points at 0 are whole
    _x_axis(axes, x)
    axes.set_ylabel(y_words)
    axes.legend(loc="upper right")
    return note


def _limit(axes: Any, curves: Sequence[Points], teacher: TeacherLine | None) -> str:
    everything = np.concatenate([values for _, values in curves])
    everything = everything[np.isfinite(everything)]
    low = min(everything.min(), teacher.loss if teacher else np.inf)
    high = max(np.quantile(everything, 0.97), max(float(values[-1]) for _, values in curves))
    room = 0.06 * max(high - low, 1e-3)
    top = high + 2 * room
    axes.set_ylim(low - room, top)
    above = [(at[values > top], values[values > top]) for at, values in curves if (values > top).any()]
    if not above:
        return ""
    for at, _ in above:
        axes.plot(at[:1], [top], marker=6, markersize=9, color=INK, clip_on=False, linestyle="none", zorder=5)
    return f"▲: the curve continues above the scale, up to {text.three(max(float(v.max()) for _, v in above))}."


def _x_axis(axes: Any, x: str) -> None:
    """Tokens as people count them; FLOPs as multiples of a power of ten that is in the axis' name."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(5))
    if x == "tokens":
        axes.xaxis.set_major_formatter(lambda value, _: text.count(value) if value else "0")
        axes.set_xlabel("tokens")
        return
    exponent = text.magnitude(axes.get_xlim()[1])
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / 10.0**exponent:g}")
    axes.set_xlabel(f"FLOPs, × {text.power_of_ten(exponent)}")
