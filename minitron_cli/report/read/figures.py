"""Figures about models that several sections show, each taken from one place only."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from minitron_cli.evaluate.compare import kept_share
from minitron_cli.report.read.curves import training_options
from minitron_cli.report.read.values import Model, Run

INTERVAL = 1.96  # standard errors on each side: a 95% interval
# Two runs measure held-out loss on the same windows when these agree.
_SAME_WINDOWS = ("eval_data", "eval_windows", "seq_len", "separator", "text_field")


@dataclass(frozen=True, slots=True)
class Losses:
    """Held-out losses in nats per token that may be compared: `source` is "evaluation" or "training"."""

    values: dict[str, float]
    source: str


def comparable_losses(run: Run) -> Losses:
    """All from the evaluation, or without one all from trainings."""
    evaluated = {m.name: m.loss for m in run.models if m.loss is not None}
    if evaluated:
        return Losses(evaluated, "evaluation")
    found = {m.name: _loss_in_training(m, run) for m in run.models}
    return Losses({name: value for name, value in found.items() if value is not None}, "training")


def _loss_in_training(model: Model, run: Run) -> float | None:
    """The last one that a model's training measured; of a cut model the first, before the first update of its child."""
    if model.verb != "prune":
        return last_evaluated(model)
    for child in run.models:
        evaluated = child.curve.evaluated if child.parent == model.name and child.curve else {}
        if "eval_ce" in evaluated and evaluated["step"][0] == 0:
            return float(evaluated["eval_ce"][0])
    return None


def last_evaluated(model: Model) -> float | None:
    """The last finite held-out loss that training measured."""
    values = model.curve.evaluated.get("eval_ce", np.zeros(0)) if model.curve else np.zeros(0)
    finite = values[np.isfinite(values)]
    return float(finite[-1]) if len(finite) else None


@dataclass(frozen=True, slots=True)
class TeacherLine:
    """A teacher's held-out loss. `same_windows`: measured on the very windows of the student's curve."""

    name: str
    loss: float
    same_windows: bool

    @property
    def words(self) -> str:
        return f"teacher: {self.name}, {self.loss:.3f}" + ("" if self.same_windows else " (evaluation)")


def teacher_line(model: Model, run: Run) -> TeacherLine | None:
    """The teacher's loss on the held-out windows of `model`'s own training, None where it is not known.

    A teacher that was trained in this run was measured on them if its options say so; for another one the loss of the
    evaluation is shown under that name.
    """
    for teacher in filter(None, map(run.model, model.teachers)):
        last = last_evaluated(teacher)
        if last is not None and _windows(teacher) == _windows(model):
            return TeacherLine(teacher.name, last, same_windows=True)
        if teacher.loss is not None:
            return TeacherLine(teacher.name, teacher.loss, same_windows=False)
    return None


def options_of(model: Model) -> Any:
    """The options of a model's training, from its run directory or, where that is gone, from its manifest."""
    return training_options(model.path / "run") or model.options


def _windows(model: Model) -> list[object]:
    return [options_of(model).get(key) for key in _SAME_WINDOWS]


def descent(model: Model, run: Run) -> list[Model]:
    """The model and its ancestors in this run, youngest first."""
    found: list[Model] = []
    at: Model | None = model
    while at is not None and at not in found:
        found.append(at)
        at = run.model(at.parent)
    return found


def spent(models: list[Model], what: str) -> float | None:
    """The `tokens` or `flops` of these models' trainings together; None where none was trained."""
    known = [value for m in models if (value := getattr(m, what)) is not None]
    return sum(known) if known else None


def kept_accuracy(model: Model, reference: Model | None) -> float | None:
    """How much of the reference's mean accuracy above chance a model has."""
    base = reference.evaluation.get("accuracy") if reference and reference is not model else None
    own = model.evaluation.get("accuracy")
    return None if own is None or base is None else kept_share(own, base, model.evaluation.get("chance"))


def loss_interval(model: Model) -> tuple[float, float] | None:
    """The loss above the evaluation's reference with half its 95% interval, both nats per token (paired)."""
    found = model.evaluation.get("losses", {}).get("all", {}).get("difference")
    known = found is not None and found["difference"] is not None and found["stderr"] is not None
    return (found["difference"], INTERVAL * found["stderr"]) if known else None
