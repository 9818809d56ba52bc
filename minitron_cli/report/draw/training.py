"""Training curves: the loss against tokens or FLOPs, with the teacher's line."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from minitron_cli.report import text
from minitron_cli.report.draw.style import Style
from minitron_cli.report.draw.svg import to_svg, unique
from minitron_cli.report.draw.theme import INK, MUTED, canvas
from minitron_cli.report.html import Html
from minitron_cli.report.read.figures import TeacherLine
from minitron_cli.report.read.values import Curve, Model

X_WORDS = {"tokens": "tokens", "flops": "FLOPs"}
_MOST_POINTS = 600


def loss_curve(
    model: Model, style: Style, x: str, teacher: TeacherLine | None, size: tuple[float, float] = (372, 290)
) -> Html | None:
    """Cross-entropy in training (thin, and smoothed) and on held-out text (points); None where neither was written.

    `x` is "tokens" or "flops"; `teacher` its line, where that is known.
    """
    assert model.curve is not None
    shown = _series(model.curve, x)
    if not shown:
        return None
    with canvas(*size) as figure:
        axes = figure.subplots()
        if "training" in shown:
            at, values = shown["training"]
            axes.plot(at, values, color=style.colour, linewidth=1, alpha=0.3)
            axes.plot(at, smooth(values), color=style.colour, linewidth=2, label="training text, smoothed")
        if "held-out" in shown:
            at, values = shown["held-out"]
            axes.plot(at, values, color=INK, marker="o", markersize=4.5, linewidth=1.2, label="held-out text")
        if teacher:
            _line(axes, teacher.words, teacher.loss)
        _finish(axes, x, "nats per token", [v for _, v in shown.values()], teacher)
        label = f"Cross-entropy of {model.name} against {X_WORDS[x]}. " + _words(shown, teacher)
        return to_svg(figure, unique("loss", model.name, x), label)


def divergence_curve(model: Model, style: Style, size: tuple[float, float] = (372, 290)) -> Html | None:
    """The divergence from the teacher that distillation minimises, by tokens; None where there is none."""
    assert model.curve is not None
    logged, evaluated = model.curve.logged, model.curve.evaluated
    if "kd" not in logged:
        return None
    with canvas(*size) as figure:
        axes = figure.subplots()
        at, values = thin(logged["tokens"], logged["kd"])
        axes.plot(at, values, color=style.colour, linewidth=1, alpha=0.3)
        axes.plot(at, smooth(values), color=style.colour, linewidth=2, label="training text, smoothed")
        if "eval_kd" in evaluated:
            axes.plot(
                evaluated["tokens"],
                evaluated["eval_kd"],
                color=INK,
                marker="o",
                markersize=4.5,
                linewidth=1.2,
                label="held-out text",
            )
        if (values > 0).all():
            _log_scale(axes)
        _finish(axes, "tokens", "divergence from the teacher, nats", [], None)
        label = f"Distillation loss of {model.name} against tokens, from {values[0]:.4f} to {values[-1]:.4f}."
        return to_svg(figure, unique("kd", model.name), label)


def compare_curves(models: list[Model], look: Mapping[str, Style], x: str, teacher: TeacherLine | None) -> Html:
    """Held-out loss of several models over what they have spent, on one scale."""
    with canvas(540, 330) as figure:
        axes = figure.subplots()
        words, everything = [], []
        for model in models:
            assert model.curve is not None
            evaluated = model.curve.evaluated
            style = look[model.name]
            axes.plot(
                evaluated[x],
                evaluated["eval_ce"],
                color=style.colour,
                marker=style.marker,
                markersize=5,
                linestyle=style.dash,
                label=model.name,
            )
            everything.append(evaluated["eval_ce"])
            words.append(f"{model.name} ends at {evaluated['eval_ce'][-1]:.3f}")
        if teacher:
            _line(axes, teacher.words, teacher.loss)
        _finish(axes, x, "held-out loss, nats per token", everything, teacher)
        return to_svg(figure, unique("compare", x), f"Held-out loss against {X_WORDS[x]}: {', '.join(words)}.")


def _series(curve: Curve, x: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    found = {}
    if "ce" in curve.logged:
        found["training"] = thin(curve.logged[x], curve.logged["ce"])
    if "eval_ce" in curve.evaluated:
        found["held-out"] = (curve.evaluated[x], curve.evaluated["eval_ce"])
    return found


def thin(at: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most some hundred points: neighbours become their mean, so that no trend is lost. (n,) -> (<= 600,) each."""
    keep = np.isfinite(values)
    at, values = at[keep], values[keep]
    if len(values) <= _MOST_POINTS:
        return at, values
    parts = np.array_split(np.arange(len(values)), _MOST_POINTS)
    return np.array([at[p].mean() for p in parts]), np.array([values[p].mean() for p in parts])


def smooth(values: np.ndarray, share: float = 0.015) -> np.ndarray:
    """A Gaussian mean, `share` of the run wide, that neither lags behind nor bends at the ends: (n,) -> (n,)."""
    width = max(1.0, share * len(values))
    reach = min(int(np.ceil(3 * width)), len(values) - 1)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / width) ** 2)
    weight = np.convolve(np.ones(len(values)), kernel)[reach : reach + len(values)]
    return np.convolve(values, kernel)[reach : reach + len(values)] / weight


def _line(axes: Any, label: str, value: float) -> None:
    axes.axhline(value, color=MUTED, linestyle=(0, (5, 3)), linewidth=1.6, label=label)


def _log_scale(axes: Any) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5), numticks=12))
    axes.yaxis.set_major_formatter(lambda value, _: text.three(value))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _finish(axes: Any, x: str, y_label: str, values: list[np.ndarray], teacher: TeacherLine | None) -> None:
    """The first steps of a training from scratch would flatten all that follows: the scale leaves them out."""
    if values:
        everything = np.concatenate([v[np.isfinite(v)] for v in values])
        low = min(everything.min(), teacher.loss if teacher else np.inf)
        high = max(np.quantile(everything, 0.97), max(float(v[-1]) for v in values))
        room = 0.06 * max(high - low, 1e-3)
        axes.set_ylim(low - room, high + 2 * room)
    axes.set_xlim(left=-0.015 * axes.get_xlim()[1])  # so that the points at 0 are whole
    _x_axis(axes, x)
    axes.set_ylabel(y_label)
    axes.legend(loc="upper right")


def _x_axis(axes: Any, x: str) -> None:
    """Tokens as people count them; FLOPs as multiples of a power of ten that stands in the axis' name."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(5))
    if x == "tokens":
        axes.xaxis.set_major_formatter(lambda value, _: text.count(value) if value else "0")
        axes.set_xlabel("tokens")
        return
    exponent = text.magnitude(axes.get_xlim()[1])
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / 10.0**exponent:g}")
    axes.set_xlabel(f"FLOPs, × {text.power_of_ten(exponent)}")


def _words(shown: Mapping[str, tuple[np.ndarray, np.ndarray]], teacher: TeacherLine | None) -> str:
    parts = [f"{name} text from {values[0]:.3f} to {values[-1]:.3f}" for name, (_, values) in shown.items()]
    return "; ".join(parts) + (f"; the teacher stands at {teacher.loss:.3f}." if teacher else ".")
