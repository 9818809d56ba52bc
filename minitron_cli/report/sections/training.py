"""Training: the loss by tokens and by FLOPs, with the teacher's line."""

from collections.abc import Mapping

import numpy as np

from minitron_cli.report import text
from minitron_cli.report.draw import training as draw
from minitron_cli.report.draw.style import Style
from minitron_cli.report.html import Html, figure, missing, section, table, tag
from minitron_cli.report.read.curves import training_options
from minitron_cli.report.read.figures import last_evaluated, teacher_line
from minitron_cli.report.read.values import Model, Run


def training(run: Run, look: Mapping[str, Style]) -> Html:
    """All held-out curves on one scale, then each run by itself."""
    trained = [m for m in run.models if m.curve is not None]
    waiting = [
        m.name for m in run.models if m.verb in ("train", "distill") and m.curve is None and m.state != "elsewhere"
    ]
    words = missing(f"No metrics yet of {', '.join(waiting)}.") if waiting else None
    if not trained:
        return section("training", "Training", words or missing("Nothing was trained in this run."))
    return section(
        "training", "Training", words, _together(trained, run, look), [_one(m, run, look[m.name]) for m in trained]
    )


def _together(trained: list[Model], run: Run, look: Mapping[str, Style]) -> Html | None:
    """The students of one teacher, whose line they try to reach."""
    students = [m for m in trained if m.teachers and last_evaluated(m) is not None]
    if len(students) < 2:
        return None
    lines = {teacher_line(m, run) for m in students}
    line = lines.pop() if len(lines) == 1 else None
    pair = [
        figure(draw.compare_curves(students, look, x, line), f"Held-out loss of the distilled models by {words}")
        for x, words in draw.X_WORDS.items()
    ]
    return tag("div", pair, class_="pair")


def _one(model: Model, run: Run, style: Style) -> Html:
    assert model.curve is not None
    teacher = teacher_line(model, run)
    pictures = []
    for x, words in draw.X_WORDS.items():
        if picture := draw.loss_curve(model, style, x, teacher):
            pictures.append(figure(picture, f"Loss by {words}"))
    if picture := draw.divergence_curve(model, style):
        pictures.append(figure(picture, "Divergence from the teacher, the loss that is trained on"))
    going = tag("span", "in progress", class_="badge going") if model.state == "begun" else None
    unknown = None
    if model.teachers and teacher is None:
        unknown = tag(
            "p",
            f"The loss of the teacher ({', '.join(model.teachers)}) on these windows is not known to this run, so "
            "there is no line for it.",
            class_="quiet",
        )
    return tag(
        "article",
        tag("h3", model.name, " ", going),
        tag("p", _summary(model), class_="quiet"),
        unknown,
        tag("div", pictures, class_="triple"),
        _numbers(model),
    )


def _summary(model: Model) -> str:
    """Progress, cost and speed in one line."""
    assert model.curve is not None
    curve, logged = model.curve, model.curve.logged
    done, total = curve.steps_done, curve.total_steps
    parts = [f"{done:,} of {total:,} steps" if total else f"{done:,} steps"]
    if model.tokens:
        parts.append(f"{text.count(model.tokens)} tokens")
    if model.flops:
        parts.append(f"{text.flops(model.flops)} FLOPs")
    if "tokens_per_second" in logged:
        parts.append(f"{np.nanmedian(logged['tokens_per_second']):,.0f} tokens/s")
    if "peak_memory" in logged:
        parts.append(f"{np.nanmax(logged['peak_memory']) / 1e9:.2f} GB at most")
    if "skipped" in logged:
        parts.append(f"{int(np.nanmax(logged['skipped']))} steps skipped by the spike guard")
    options = model.manifest.get("options") or training_options(model.path / "run")
    if options.get("lr"):
        parts.append(f"{options.get('schedule', '')} schedule from {options['lr']:g}")
    return " · ".join(parts)


def _numbers(model: Model) -> Html | None:
    """Every evaluation on held-out text."""
    assert model.curve is not None
    evaluated = model.curve.evaluated
    names = [n for n in ("eval_ce", "eval_kd", "eval_agreement") if n in evaluated]
    if not names:
        return None
    titles = {"eval_ce": "nats per token", "eval_kd": "divergence", "eval_agreement": "agrees with teacher"}
    rows = [
        [
            f"{evaluated['step'][i]:,.0f}",
            text.count(evaluated["tokens"][i]),
            text.flops(evaluated["flops"][i]),
            *(_cell(name, float(evaluated[name][i])) for name in names),
        ]
        for i in range(len(evaluated["step"]))
    ]
    grid = table(
        ("step", "tokens", "FLOPs", *(titles[n] for n in names)),
        rows,
        caption=f"Held-out text during the training of {model.name}",
    )
    return tag("details", tag("summary", "The numbers"), grid)


def _cell(name: str, value: float) -> str:
    if not np.isfinite(value):
        return "–"
    return text.share(value) if name == "eval_agreement" else f"{value:.4f}"
