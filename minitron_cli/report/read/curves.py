"""A training run's metrics.jsonl as columns."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minitron_cli.errors import MinitronError
from minitron_cli.report.read.values import Curve


def read_curve(run: Path) -> Curve | None:
    """The curve of OUT/run, None where no line has been written yet."""
    file = run / "metrics.jsonl"
    if not file.is_file():
        return None
    lines = _lines(file)
    if not lines:
        return None
    logged = [line for line in lines if "loss" in line]
    evaluated = [line for line in lines if any(name.startswith("eval_") for name in line)]
    columns = _columns(logged)
    return Curve(columns, _with_flops(_columns(evaluated), columns), _total_steps(run))


def _lines(file: Path) -> list[dict[str, Any]]:
    """Every whole line: the last one of a run that is going on, or was killed, may be cut short."""
    found = []
    for number, text in enumerate(file.read_text().splitlines(keepends=True), 1):
        if not text.endswith("\n"):
            break
        try:
            found.append(json.loads(text))
        except ValueError as error:
            raise MinitronError(f"{file}, line {number} is not valid JSON: {error}") from error
    return found


def _columns(lines: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    names = dict.fromkeys(name for line in lines for name, value in line.items() if not isinstance(value, str))
    return {name: np.array([_number(line.get(name)) for line in lines], np.float64) for name in names}


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)


def _with_flops(evaluated: dict[str, np.ndarray], logged: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Evaluations are written with their tokens only; the FLOPs at that point follow from the logged steps."""
    if not evaluated or "flops" in evaluated:
        return evaluated
    tokens, flops = logged.get("tokens", np.zeros(0)), logged.get("flops", np.zeros(0))
    at = evaluated["tokens"]
    return {**evaluated, "flops": np.interp(at, np.append(0.0, tokens), np.append(0.0, flops))}


def _total_steps(run: Path) -> int | None:
    options = training_options(run)
    return options.get("steps")


def training_options(run: Path) -> dict[str, Any]:
    """The settled options that a training run was begun with; empty before they are written."""
    file = run / "options.json"
    if not file.is_file():
        return {}
    try:
        return json.loads(file.read_text())["options"]
    except (ValueError, KeyError, TypeError) as error:
        raise MinitronError(f"{file} is damaged: {error}") from error
