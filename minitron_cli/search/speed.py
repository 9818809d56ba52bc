"""The speed that a candidate must have, and the speed that it has."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from minitron_cli.evaluate.bench import Cell
from minitron_cli.spec.limits import count, require


@dataclass(frozen=True, slots=True)
class SpeedBudget:
    """What a candidate must meet in every cell: at most so many milliseconds to the last token, at least a speed-up."""

    cells: tuple[Cell, ...]
    repeats: Annotated[int, count()] = 5
    latency_ms: float | None = None
    speedup: float | None = None

    def __post_init__(self) -> None:
        require(self, "search", lambda field: f"--bench-{field}")

    @property
    def binds(self) -> bool:
        return self.latency_ms is not None or self.speedup is not None


@dataclass(frozen=True, slots=True)
class Speed:
    """By cell, as text: seconds to the last token, the source's in the same rounds, and their ratio.

    The fastest round of each counts: other work on the machine only ever slows a round down.
    """

    seconds: Mapping[str, float]
    source_seconds: Mapping[str, float]
    speedups: Mapping[str, float]

    @property
    def slowest_ms(self) -> float:
        return max(self.seconds.values()) * 1e3

    @property
    def least_speedup(self) -> float:
        return min(self.speedups.values())

    def holds(self, budget: SpeedBudget) -> bool:
        """Whether every cell is inside the budget."""
        return (budget.latency_ms is None or self.slowest_ms <= budget.latency_ms) and (
            budget.speedup is None or self.least_speedup >= budget.speedup
        )
