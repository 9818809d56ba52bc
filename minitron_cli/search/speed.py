"""How fast a candidate is, by what `bench` measures: random weights of its shape beside the source's, round by round.

Nothing is cut for it. What was measured once is found again, as long as the grid, the device and the threads are the
same.
"""

import json
import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from minitron_cli.checkpoint.atomic import atomic_file
from minitron_cli.checkpoint.hfconfig import pruned_config, validate_config
from minitron_cli.evaluate.bench import Cell, Subject
from minitron_cli.evaluate.bench import measure as measure_rounds
from minitron_cli.spec.plan import from_scores
from minitron_cli.spec.shape import Shape

if TYPE_CHECKING:
    from minitron_cli.search.run import Bench

WARMUP = 1


@dataclass(frozen=True, slots=True)
class SpeedBudget:
    """What a candidate must hold in every cell: milliseconds to the last token at the most, speed-up at the least."""

    cells: tuple[Cell, ...]
    repeats: int = 5
    latency_ms: float | None = None
    speedup: float | None = None

    @property
    def binds(self) -> bool:
        return self.latency_ms is not None or self.speedup is not None


@dataclass(frozen=True, slots=True)
class Speed:
    """By cell, as text: seconds to the last token, the source's in the same rounds, and their ratio.

    The fastest round counts, of both: whatever else the machine does can only slow a round down, and a shape that was
    lucky once must not pass for a fast one.
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


@dataclass(slots=True)
class Stopwatch:
    """Measures shapes against the source, whose model is built when the first one is measured and then kept."""

    bench: "Bench"
    budget: SpeedBudget
    say: Callable[[str], None]
    _source: Subject | None = field(default=None, init=False)

    def speed(self, shape: Shape, name: str) -> Speed:
        """The speed of a candidate's shape, measured or found."""
        file = self.bench.options.output / "speed" / f"{name}.json"
        identity = self._identity()
        if file.is_file():
            found = json.loads(file.read_text())
            if found["identity"] == identity:
                return Speed(**found["speed"])
        speed = self._measure(shape, name)
        with atomic_file(file) as temporary:
            temporary.write_text(json.dumps({"identity": identity, "speed": asdict(speed)}, indent=1) + "\n")
        self.say(f"{name}: {speed.slowest_ms:.1f} ms, {speed.least_speedup:.2f} x the source's speed")
        return speed

    def _measure(self, shape: Shape, name: str) -> Speed:
        if self._source is None:
            self._source = self._subject(self.bench.source.config, "source")
        subjects = [self._source, self._subject(self._config(shape), name)]
        rows = measure_rounds(
            subjects, self.budget.cells, repeats=self.budget.repeats, warmup=WARMUP, say=lambda text: None
        )
        cells = [str(cell) for cell in self.budget.cells]
        of_source, of_shape = ({cell: row["fastest"] for cell, row in zip(cells, rows[i::2])} for i in (0, 1))
        return Speed(of_shape, of_source, {cell: of_source[cell] / of_shape[cell] for cell in cells})

    def _config(self, shape: Shape) -> dict[str, Any]:
        source = self.bench.source
        plan = from_scores(self.bench.scores, source.shape, shape)
        config = pruned_config(source.config, source.family, plan)
        validate_config(config)
        return config

    def _subject(self, config: Mapping[str, Any], name: str) -> Subject:
        from minitron_cli.evaluate.engines import subject_of_config

        return subject_of_config(config, name, device=self.bench.options.device, dtype="auto")

    def _identity(self) -> dict[str, Any]:
        return {
            "cells": [str(cell) for cell in self.budget.cells],
            "repeats": self.budget.repeats,
            "machine": machine(self.bench.options.device),
        }


def machine(device: str) -> str:
    """What the times were taken on, in words."""
    import torch

    from minitron_cli.hf.devices import choose_device

    where = choose_device(device)
    if where.type == "cuda":
        return torch.cuda.get_device_name(where)
    return f"{platform.node()} {platform.machine()}, {torch.get_num_threads()} threads"
