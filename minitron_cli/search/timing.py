"""Time candidates as `bench` does: random weights of their shape beside the source's, round by round; nothing is cut.

A time is used again as long as the grid, the device and the threads are the same.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from minitron_cli.checkpoint.hfconfig import pruned_config, validate_config
from minitron_cli.checkpoint.kept import kept
from minitron_cli.evaluate.bench import Subject
from minitron_cli.evaluate.bench import measure as measure_rounds
from minitron_cli.search.speed import Speed, SpeedBudget
from minitron_cli.search.workspace import Workspace
from minitron_cli.spec.plan import from_scores
from minitron_cli.spec.shape import Shape

WARMUP = 1


@dataclass(slots=True)
class ShapeTimer:
    """Measures shapes against the source, whose model is built when the first one is measured and then kept."""

    workspace: Workspace
    budget: SpeedBudget
    say: Callable[[str], None]
    _source: Subject | None = field(default=None, init=False)

    def speed(self, shape: Shape, name: str) -> Speed:
        """The speed of a candidate's shape, measured or found."""
        file = self.workspace.request.output / "speed" / f"{name}.json"
        known, found = kept(file, self._identity(), lambda: asdict(self._measure(shape, name)))
        speed = Speed(**known)
        if not found:
            self.say(f"{name}: {speed.slowest_ms:.1f} ms, {speed.least_speedup:.2f} x the source's speed")
        return speed

    def _measure(self, shape: Shape, name: str) -> Speed:
        if self._source is None:
            self._source = self._subject(self.workspace.source.config, "source")
        subjects = [self._source, self._subject(self._config(shape), name)]
        rows = measure_rounds(
            subjects, self.budget.cells, repeats=self.budget.repeats, warmup=WARMUP, say=lambda text: None
        )
        cells = [str(cell) for cell in self.budget.cells]
        of_source, of_shape = ({cell: row["fastest"] for cell, row in zip(cells, rows[i::2])} for i in (0, 1))
        return Speed(of_shape, of_source, {cell: of_source[cell] / of_shape[cell] for cell in cells})

    def _config(self, shape: Shape) -> dict[str, Any]:
        source = self.workspace.source
        plan = from_scores(self.workspace.scores, source.shape, shape)
        config = pruned_config(source.config, source.family, plan)
        validate_config(config)
        return config

    def _subject(self, config: Mapping[str, Any], name: str) -> Subject:
        from minitron_cli.evaluate.engines import subject_of_config

        return subject_of_config(config, name, device=self.workspace.request.device, dtype="auto")

    def _identity(self) -> dict[str, Any]:
        from minitron_cli.hf.devices import choose_device, machine_words

        return {
            "cells": [str(cell) for cell in self.budget.cells],
            "repeats": self.budget.repeats,
            "machine": machine_words(choose_device(self.workspace.request.device)),
        }
