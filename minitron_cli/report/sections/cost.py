"""What every step took, beside its forecast, and the whole chain."""

from collections.abc import Callable, Sequence
from typing import Any

from minitron_cli.report import text
from minitron_cli.report.read.values import Run, Step
from minitron_cli.report.table import Cell, Table

# Quantities that a step counts: column, key, how it is written.
_COLUMNS: Sequence[tuple[str, str, Callable[[Any], str]]] = (
    ("tokens", "tokens", text.count),
    ("FLOPs", "flops", text.flops),
    ("memory", "memory_bytes", text.size),
    ("weights", "disk_bytes", text.size),
)


def cost_table(run: Run) -> Table | None:
    """One row a step and a total; None where no step has counted anything."""
    steps = [step for step in run.steps if step.seconds]
    if not steps:
        return None
    rows: list[list[Cell | str]] = [
        [
            Cell(step.name, (step.verb,)),
            text.duration(step.seconds),
            *(_cell(step.actual.get(key), step.forecast.get(key), form) for _, key, form in _COLUMNS),
            _rate(step),
            text.size(step.actual.get("host_bytes") or None),
            text.size(step.actual.get("all_bytes") or None),
        ]
        for step in steps
    ]
    if len(steps) > 1:
        rows.append(_total(steps))
    columns = ("step", "time", *(name for name, _, _ in _COLUMNS), "FLOP/s", "process memory", "on disk")
    return Table("What every step took, and its forecast where that is known", columns, rows).without_empty_columns()


def _cell(actual: float | None, forecast: float | None, form: Callable[[Any], str]) -> Cell:
    return Cell(form(actual or None), (f"forecast {form(forecast)}",) if actual and forecast else ())


def _rate(step: Step) -> str:
    flops = step.actual.get("flops")
    return text.flops(flops / step.seconds) if flops and step.seconds else text.NOTHING


def _total(steps: Sequence[Step]) -> list[Cell | str]:
    """Sums of what adds up; memory is the most of any step."""
    seconds = sum(step.seconds or 0.0 for step in steps)
    cells: list[Cell | str] = [Cell("the whole chain", (f"{len(steps)} steps",)), text.duration(seconds)]
    for _, key, form in _COLUMNS:
        combine = max if key == "memory_bytes" else sum
        counted = [step for step in steps if step.actual.get(key)]
        actual, forecast = (
            combine([record.get(key) or 0 for record in records] or [0])
            for records in ([s.actual for s in counted], [s.forecast for s in counted])
        )
        cells.append(_cell(actual, forecast, form))
    host = max((step.actual.get("host_bytes") or 0 for step in steps), default=0)
    disk = sum(step.actual.get("all_bytes") or 0 for step in steps)
    return [*cells, text.NOTHING, text.size(host or None), text.size(disk or None)]
