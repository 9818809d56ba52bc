"""Training: one line of figures and the table of evaluations of a run, and which windows they were measured on."""

from collections.abc import Mapping

import numpy as np

from minitron_cli.hf.memory import DEVICE_PEAK, HOST_PEAK
from minitron_cli.report import text
from minitron_cli.report.read.curves import graded, mixed
from minitron_cli.report.read.figures import last_evaluated, options_of, teacher_line
from minitron_cli.report.read.values import Model, Run
from minitron_cli.report.table import Cell, Table
from minitron_cli.spec.recipe import VERBS
from minitron_cli.training.metrics import ERROR, SCORE

_EVALUATED = {
    "eval_ce": "nats per token",
    "eval_kd": "divergence",
    "eval_agreement": "agrees with teacher",
    "eval_router_drift": "experts missed",
}
_SHARES = ("eval_agreement", "eval_router_drift")


def compared(run: Run) -> list[Model]:
    """The models that were distilled, where there are several to compare."""
    students = [m for m in run.models if m.teachers and m.curve is not None and last_evaluated(m) is not None]
    return students if len(students) > 1 else []


def common_teacher(models: list[Model], run: Run) -> object:
    """The teacher's line that all of these share, None where they have different ones."""
    lines = {teacher_line(m, run) for m in models}
    return lines.pop() if len(lines) == 1 else None


def waiting(run: Run) -> list[str]:
    """The models whose training has begun and has written nothing yet."""
    return [m.name for m in run.models if m.state == "begun" and VERBS[m.verb].trains and m.curve is None]


def windows_note(run: Run) -> str:
    """Why a held-out loss in training is another figure than the evaluation's."""
    both = [m for m in run.models if m.loss is not None and last_evaluated(m) is not None]
    if not both:
        return ""
    model = min(both, key=lambda m: m.loss or 0.0)
    options, inside = options_of(model), last_evaluated(model)
    windows = options.get("eval_windows")
    first = f"the first {windows:,} windows of {options.get('seq_len'):,} tokens" if windows else "windows of its own"
    return (
        f"Held-out losses here are measured during training, on {first} of the held-out text; the evaluation "
        f"reads other windows. So {model.name} has {inside:.3f} here and {model.loss:.3f} in the evaluation."
    )


def summary(model: Model) -> str:
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
        speed = f"{np.nanmedian(logged['tokens_per_second']):,.0f} tokens/s"
        parts.append(f"{speed} on {curve.machine or text.UNKNOWN_MACHINE}")
    for peak in (HOST_PEAK, DEVICE_PEAK):
        if peak in logged:
            parts.append(f"{text.size(float(np.nanmax(logged[peak])))} at most")
    if "skipped" in logged:
        parts.append(f"{int(np.nanmax(logged['skipped']))} steps skipped by the spike guard")
    options = options_of(model)
    if options.get("lr"):
        parts.append(f"{options.get('schedule', '')} schedule from {options['lr']:g}")
    return " · ".join(parts)


def evaluations(model: Model) -> Table | None:
    """Every evaluation on held-out text during the training."""
    assert model.curve is not None
    evaluated = model.curve.evaluated
    names = [name for name in _EVALUATED if name in evaluated]
    tasks = graded(evaluated)
    if not names and not tasks:
        return None
    rows = [
        [
            f"{evaluated['step'][i]:,.0f}",
            text.count(evaluated["tokens"][i]),
            text.flops(evaluated["flops"][i]),
            *(_cell(name, float(evaluated[name][i])) for name in names),
            *(_score(evaluated, name, i) for name in tasks),
        ]
        for i in range(len(evaluated["step"]))
    ]
    columns = ("step", "tokens", "FLOPs", *(_EVALUATED[name] for name in names), *tasks)
    return Table(f"Held-out text during the training of {model.name}", columns, rows)


def mix(model: Model) -> Table | None:
    """Every update of a mix that follows the losses: each domain's share, and its excess loss under it."""
    assert model.curve is not None
    table = model.curve.evaluated
    names = mixed(table)
    if not names:
        return None
    rows: list[list[Cell | str]] = [
        [
            f"{table['step'][i]:,.0f}",
            *(
                Cell(text.share(table[f"mix_weight/{n}"][i]), (f"{table[f'mix_excess/{n}'][i]:+.3f} nats",))
                for n in names
            ),
        ]
        for i in np.flatnonzero(np.isfinite(table[f"mix_weight/{names[0]}"]))
    ]
    return Table(f"The mix of {model.name}: share of the rows, and excess loss under it", ("step", *names), rows)


def _score(evaluated: Mapping[str, np.ndarray], name: str, i: int) -> str:
    value, nothing = evaluated[SCORE + name][i], np.full(len(evaluated["step"]), np.nan)
    error = evaluated.get(ERROR + name, nothing)[i]
    if not np.isfinite(value):
        return text.NOTHING
    return f"{value:.4f} ± {error:.4f}" if np.isfinite(error) else f"{value:.4f}"


def _cell(name: str, value: float) -> str:
    if not np.isfinite(value):
        return text.NOTHING
    return text.share(value) if name in _SHARES else f"{value:.4f}"
