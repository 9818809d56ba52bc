"""Figures about models that several sections show, each taken from one place only."""

from dataclasses import dataclass

import numpy as np

from minitron_cli.report.read.curves import training_options
from minitron_cli.report.read.values import Model, Run

# Two runs measure held-out loss on the same windows when these agree.
_SAME_WINDOWS = ("eval_data", "eval_windows", "seq_len", "separator", "text_field")


@dataclass(frozen=True, slots=True)
class Loss:
    """A held-out loss, nats per token, and where it comes from: "evaluation" or "training"."""

    value: float
    source: str


def _loss_in_training(model: Model, run: Run) -> float | None:
    """The last one that a model's training measured; of a cut model the first, before the first update of its child."""
    if model.verb != "prune":
        return last_evaluated(model)
    for child in run.models:
        evaluated = child.curve.evaluated if child.parent == model.name and child.curve else {}
        if "eval_ce" in evaluated and evaluated["step"][0] == 0:
            return float(evaluated["eval_ce"][0])
    return None


def last_evaluated(model: Model, name: str = "eval_ce") -> float | None:
    """The last finite value of a column that training evaluated."""
    values = model.curve.evaluated.get(name, np.zeros(0)) if model.curve else np.zeros(0)
    finite = values[np.isfinite(values)]
    return float(finite[-1]) if len(finite) else None


def comparable_losses(run: Run) -> dict[str, Loss]:
    """Held-out losses that may stand on one scale: all from the evaluation, or without one all from trainings."""
    evaluated = {m.name: Loss(m.loss, "evaluation") for m in run.models if m.loss is not None}
    if evaluated:
        return evaluated
    found = {m.name: _loss_in_training(m, run) for m in run.models}
    return {name: Loss(value, "training") for name, value in found.items() if value is not None}


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

    A teacher that was trained in this run has been measured on them if its options say so; for one that was not, the
    evaluation's loss stands in, and says so.
    """
    for name in model.teachers:
        teacher = run.model(name)
        if teacher is None:
            continue
        last = last_evaluated(teacher)
        if last is not None and _windows(teacher) == _windows(model):
            return TeacherLine(name, last, same_windows=True)
        if teacher.loss is not None:
            return TeacherLine(name, teacher.loss, same_windows=False)
    return None


def _windows(model: Model) -> list[object]:
    options = model.manifest.get("options") or training_options(model.path / "run")
    return [options.get(key) for key in _SAME_WINDOWS]


def tokens_to_make(model: Model, run: Run) -> int | None:
    """Training tokens along the line of descent inside this run, the model's own included."""
    total, found, seen = 0, False, set()
    at: Model | None = model
    while at is not None and at.name not in seen:
        seen.add(at.name)
        if at.tokens is not None:
            total, found = total + at.tokens, True
        at = run.model(at.parent)
    return total if found else None
