"""What training added: the source, the cut, the students exported on the way and the last one, in one table."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from minitron_cli.report import text
from minitron_cli.report.read.values import Model, Results, Run
from minitron_cli.report.table import Cell, Table

_EXPORTED = re.compile(r"^(?P<model>.+)/run/exported/step-(?P<step>\d+)/?$")
_DEVICES = re.compile(r"^(\d+) x ")


def trajectories(results: Results, run: Run, gpu_price: float | None) -> list[Table]:
    """One table for every training of which an evaluation has students that were exported on the way.

    Hours are those of one device, from the tokens and the median speed of the training, with their price where
    `gpu_price` (an hour of a device) is given.
    """
    models = {entry["path"]: entry for entry in results.content.get("models", ()) if not entry.get("error")}
    found: dict[str, dict[int, str]] = {}
    for path in models:
        if match := _EXPORTED.match(path):
            found.setdefault(match["model"], {})[int(match["step"])] = path
    tables = (_table(base, steps, models, results, run, gpu_price) for base, steps in found.items())
    return [table for table in tables if table is not None]


def _table(
    base: str, steps: Mapping[int, str], models: Mapping[str, Any], results: Results, run: Run, price: float | None
) -> Table | None:
    student = run.model(Path(base).name)
    if student is None or student.curve is None:
        return None
    spent = dict.fromkeys(models, 0.0)  # tokens that led to each model, after the cut
    spent |= {path: _tokens(student, step) for step, path in steps.items()}
    ordered = [steps[step] for step in sorted(steps)]
    if base in models:
        spent[base] = float(student.tokens or 0)
        ordered.append(base)
    cut = next((path for path in models if Path(path).name == student.parent), None)
    source = next((path for path, entry in models.items() if entry["name"] == results.content.get("reference")), None)
    ordered = [path for path in dict.fromkeys((source, cut)) if path is not None and path not in ordered] + ordered
    rows = results.content.get("rows", ())
    tasks = list(dict.fromkeys((row["task"], row["metric"]) for row in rows if not row.get("group")))
    scores = {(row["model"], row["task"], row["metric"]): row for row in rows}
    columns = ["model", "tokens", "loss", *(f"{task}, {metric}" for task, metric in tasks), "device-hours"]
    body = [
        [
            models[path]["name"],
            text.count(spent[path]) if spent[path] else text.NOTHING,
            text.number(models[path].get("loss"), ".4f"),
            *(_score(scores.get((models[path]["name"], *task))) for task in tasks),
            _hours(student, spent[path], price),
        ]
        for path in ordered
    ]
    priced = f", at {price:g} an hour of a device" if price is not None else ""
    return Table(f"What the training of {student.name} added{priced}", columns, body).without_empty_columns()


def _tokens(model: Model, step: int) -> float:
    """Tokens that a training had read after `step` updates."""
    assert model.curve is not None
    return float(np.interp(step, np.append(0, model.curve.logged["step"]), np.append(0, model.curve.logged["tokens"])))


def _hours(model: Model, tokens: float, price: float | None) -> Cell | str:
    assert model.curve is not None
    speeds, devices = model.curve.logged.get("tokens_per_second"), _DEVICES.match(model.curve.machine or "")
    if not tokens or speeds is None:
        return text.NOTHING
    hours = tokens / float(np.nanmedian(speeds)) / 3600 * int(devices[1] if devices else 1)
    return Cell(text.three(hours), (f"costs {hours * price:,.2f}",) if price is not None else ())


def _score(row: Mapping[str, Any] | None) -> str:
    if row is None or row["value"] is None:
        return text.NOTHING
    return f"{row['value']:.4f}" + (f" ± {row['stderr']:.4f}" if row["stderr"] is not None else "")
