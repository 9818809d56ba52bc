"""Speed of prefill and decoding, latency and memory over a grid of lengths, of all models in the same run.

The models are interleaved: every round times each model on each cell of the grid, so that a machine that warms up,
throttles or is shared slows them alike, and a ratio is taken within a round before the median over rounds.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from minitron_cli.errors import MinitronError

_UNSTEADY = 0.5  # of the median: how far the middle half of the rounds may spread


@dataclass(frozen=True, slots=True)
class Cell:
    """One point of the grid: `batch` prompts of `input` tokens, each continued by `output` tokens."""

    input: int
    output: int
    batch: int

    def __str__(self) -> str:
        return f"{self.input}x{self.output} batch {self.batch}"


@dataclass(frozen=True, slots=True)
class Sample:
    """One timed run of a cell: seconds to the first token, seconds of the rest; bytes of the filled cache (keys, values
    and states); peak bytes of the device while it ran (weights of this model included), where the device counts them.
    """

    first: float
    rest: float
    kv_bytes: int | None
    peak_bytes: int | None


@dataclass(frozen=True, slots=True)
class Subject:
    """A model under test, ready to run a cell."""

    name: str
    path: str
    parameters: int
    weight_bytes: int
    context: int | None
    run: Callable[[Cell], Sample]


@dataclass(frozen=True, slots=True)
class Figure:
    """Median over the rounds, and how far they spread: the middle half's width over the median."""

    median: float
    spread: float


METRICS: Mapping[str, Callable[[Cell, Sample], float]] = {
    "prefill_tokens_per_second": lambda cell, s: cell.batch * cell.input / s.first,
    "decode_tokens_per_second": lambda cell, s: cell.batch * (cell.output - 1) / s.rest,
    "time_to_first_token": lambda cell, s: s.first,
    "time_per_output_token": lambda cell, s: s.rest / (cell.output - 1),
    "time_to_last_token": lambda cell, s: s.first + s.rest,
}


def parse_grid(grid: str, batches: str, flags: tuple[str, str] = ("--grid", "--batch-sizes")) -> tuple[Cell, ...]:
    """`128x128,2048x128` and `1,8` -> every combination; `flags` are the options they came by."""
    pairs = [re.fullmatch(r"(\d+)x(\d+)", part.strip()) for part in grid.split(",")]
    sizes = [re.fullmatch(r"(\d+)", part.strip()) for part in batches.split(",")]
    if not all(pairs) or not all(sizes):
        raise MinitronError(
            f"cannot read the grid {grid!r} with batch sizes {batches!r}",
            f"write {flags[0]} 128x128,2048x128 {flags[1]} 1,8",
        )
    cells = tuple(Cell(int(p[1]), int(p[2]), int(b[1])) for p in pairs if p for b in sizes if b)
    if any(cell.input < 1 or cell.output < 2 or cell.batch < 1 for cell in cells):
        raise MinitronError(
            f"the grid {grid!r} has an empty cell",
            "inputs and batches start at 1, outputs at 2 (the first token is prefill)",
        )
    return cells


def check_context(contexts: Sequence[tuple[str, int | None]], cells: Sequence[Cell], flag: str = "--grid") -> None:
    """Every cell must fit in every model's context, given by (name, context); all that do not are named."""
    wrong = [
        f"{cell.input}x{cell.output} on {name} (context {context})"
        for name, context in contexts
        for cell in dict.fromkeys(cells)
        if context and cell.input + cell.output > context
    ]
    if wrong:
        raise MinitronError(f"longer than the context: {', '.join(dict.fromkeys(wrong))}", f"choose a smaller {flag}")


def measure(
    subjects: Sequence[Subject], cells: Sequence[Cell], *, repeats: int, warmup: int, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Interleaved rounds: one row per cell and model, figures and their ratios to the first model.

    `fastest` is the best round's seconds to the last token: what else the machine does can only add to it.
    """
    check_context([(subject.name, subject.context) for subject in subjects], cells)
    taken: dict[tuple[Cell, int], list[Sample]] = {(cell, i): [] for cell in cells for i in range(len(subjects))}
    for turn in range(warmup + repeats):
        for cell in cells:
            for i, subject in enumerate(subjects):
                sample = _run(subject, cell)
                if turn >= warmup:
                    taken[cell, i].append(sample)
        say(f"round {turn - warmup + 1} of {repeats}" if turn >= warmup else "warm-up")
    return [_row(cell, subject, taken[cell, i], taken[cell, 0]) for cell in cells for i, subject in enumerate(subjects)]


def _run(subject: Subject, cell: Cell) -> Sample:
    try:
        return subject.run(cell)
    except RuntimeError as error:  # torch.OutOfMemoryError is one, and the CPU's allocator raises no other
        if not any(words in str(error) for words in ("allocate memory", "out of memory")):
            raise
        raise MinitronError(
            f"{cell} does not fit in memory beside {subject.name}", "choose a smaller --grid or --batch-sizes"
        ) from error


def _row(cell: Cell, subject: Subject, samples: list[Sample], reference: list[Sample]) -> dict[str, Any]:
    figures, ratios = {}, {}
    for name, of in METRICS.items():
        values = [of(cell, sample) for sample in samples]
        found = figure(values)
        figures[name] = {"median": found.median, "spread": found.spread}
        ratios[name] = statistics.median(value / of(cell, base) for value, base in zip(values, reference))
    peaks = [sample.peak_bytes for sample in samples if sample.peak_bytes is not None]
    return {
        "model": subject.name,
        "input": cell.input,
        "output": cell.output,
        "batch": cell.batch,
        **figures,
        "ratios": ratios,
        "fastest": min(sample.first + sample.rest for sample in samples),
        "kv_bytes": samples[0].kv_bytes,
        "peak_bytes": max(peaks) if peaks else None,
    }


def figure(values: Sequence[float]) -> Figure:
    """Median, and the interquartile range as a share of it."""
    median = statistics.median(values)
    if len(values) < 2:
        return Figure(median, 0.0)
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return Figure(median, (high - low) / median)


def unsteady(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """A warning about the figure that varies most between the rounds, None where the rounds agree well enough."""
    spread, metric, row = max(
        ((row[metric]["spread"], metric, row) for row in rows for metric in METRICS), key=lambda found: found[0]
    )
    if spread <= _UNSTEADY:
        return None
    return (
        f"{metric.replace('_', ' ')} of {row['model']} varies by {spread:.0%} between the rounds: other work on this "
        "machine holds threads up; give more --repeats, or OMP_NUM_THREADS fewer than the free processors"
    )


def batch_ceiling(budget: int, weight_bytes: int, kv_bytes_per_sequence: int) -> int:
    """How many sequences fit beside the weights in `budget` bytes: weights and KV cache, activations not counted."""
    return max(0, (budget - weight_bytes) // kv_bytes_per_sequence)
