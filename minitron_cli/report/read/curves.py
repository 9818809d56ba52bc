"""A training run's metrics.jsonl as columns."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minitron_cli.errors import MinitronError
from minitron_cli.report.read.documents import read_json
from minitron_cli.report.read.values import Curve
from minitron_cli.training.metrics import SCORE, read_metrics


def graded(evaluated: Mapping[str, np.ndarray]) -> list[str]:
    """The names of the tasks and metrics in a table of evaluations."""
    return [name.removeprefix(SCORE) for name in evaluated if name.startswith(SCORE)]


def mixed(evaluated: Mapping[str, np.ndarray]) -> list[str]:
    """The names of the domains in a table of evaluations whose mix follows the losses."""
    return [name.removeprefix("mix_weight/") for name in evaluated if name.startswith("mix_weight/")]


def read_curve(run: Path) -> Curve | None:
    """The curve of OUT/run, None where no line has been written yet."""
    lines = read_metrics(run)
    if not lines:
        return None
    logged = _columns([line for line in lines if "loss" in line])
    evaluated = _columns([line for line in lines if any(name.startswith("eval_") for name in line)])
    steps, machine = training_options(run).get("steps"), read_json(run / "options.json").get("machine")
    return Curve(logged, _with_flops(evaluated, logged), steps, machine)


def training_options(run: Path) -> dict[str, Any]:
    """The resolved options of a training run; empty before they are written."""
    options = read_json(run / "options.json").get("options", {})
    if not isinstance(options, dict):
        raise MinitronError(f"{run / 'options.json'} is damaged: options is not an object", "train again")
    return options


def _columns(lines: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """name -> (line,), NaN where a line lacks the name; step, tokens and flops are there even without a line."""
    names = dict.fromkeys(name for line in lines for name, value in line.items() if not isinstance(value, str))
    nan = float("nan")
    return {
        name: np.array([nan if line.get(name) is None else line[name] for line in lines], np.float64)
        for name in (names or ("step", "tokens", "flops"))
    }


def _with_flops(evaluated: dict[str, np.ndarray], logged: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Evaluations are written with their tokens only; the FLOPs at that point follow from the logged steps."""
    if "flops" in evaluated:
        return evaluated
    tokens, flops = (np.append(0.0, logged[name]) for name in ("tokens", "flops"))
    return {**evaluated, "flops": np.interp(evaluated["tokens"], tokens, flops)}
