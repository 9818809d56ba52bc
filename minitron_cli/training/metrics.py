"""What a run writes down: one JSON line per logged step, TensorBoard on request; and the memory it takes."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minitron_cli.checkpoint.atomic import atomic_file
from minitron_cli.errors import MinitronError

# What a run is graded by while it trains, in a line of the metrics: SCORE + "TASK/METRIC", and the standard error.
SCORE, ERROR = "eval_task/", "eval_task_stderr/"


class MetricsLog:
    """Appends to `metrics.jsonl`. Opened at a step, it drops what a run killed later wrote beyond it (-1: all)."""

    def __init__(self, run: Path, step: int, tensorboard: bool = False) -> None:
        self._path = run / "metrics.jsonl"
        if self._path.exists():
            kept = [line for line in read_metrics(run) if line["step"] <= step]
            with atomic_file(self._path) as temporary:
                temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
        self._file = self._path.open("a", buffering=1)
        self._board = _board(run / "tensorboard", step) if tensorboard else None

    def write(self, values: Mapping[str, Any]) -> None:
        """One line; `values` holds `step`, the number of finished updates."""
        plain = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        self._file.write(json.dumps(plain) + "\n")
        if self._board is not None:
            for name, value in values.items():
                if isinstance(value, int | float) and name != "step":
                    self._board.add_scalar(name, value, values["step"])

    def close(self) -> None:
        """Flush and close."""
        self._file.close()
        if self._board is not None:
            self._board.close()


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Every whole line of a run directory's metrics, if it has any; a kill can cut the last one short."""
    file = run / "metrics.jsonl"
    lines = file.read_bytes().splitlines(keepends=True) if file.is_file() else []
    return [_read_line(file, number, line) for number, line in enumerate(lines, 1) if line.endswith(b"\n")]


def _read_line(file: Path, number: int, text: bytes) -> dict[str, Any]:
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        line = None
    if not isinstance(line, dict) or not isinstance(line.get("step"), int):
        raise MinitronError(
            f"{file} is damaged: line {number} is not a JSON object with a step", "take that line out of the file"
        )
    return line


def _board(directory: Path, step: int) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(directory), purge_step=step + 1)
