"""Tasks inside a run: the student as it would be exported now is graded, so that a loss that falls while the scores do
is seen while the run can still be stopped.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from minitron_cli.errors import MinitronError
from minitron_cli.hf.devices import choose_dtype
from minitron_cli.hf.load import load_config, model_of_tensors
from minitron_cli.hf.process_group import World
from minitron_cli.training import export
from minitron_cli.training.metrics import ERROR, SCORE
from minitron_cli.training.prepare import Prepared
from minitron_cli.training.step import KDStep

# A score has regressed when it is this many standard errors of the difference below the run's best so far.
_REGRESSION = 3.0


class Score(NamedTuple):
    """One metric of one task, named TASK/METRIC."""

    name: str
    value: float
    stderr: float | None
    higher_is_better: bool


@dataclass(frozen=True, slots=True)
class Subject:
    """A model in memory to be graded, whole on every process of `world`; its tokenizer is read from a directory."""

    model: Any
    tokenizer: Path
    device: torch.device
    dtype: torch.dtype
    trust_remote_code: bool
    world: World


Grade = Callable[[Subject], Sequence[Score]]  # called on all ranks, which share the work; the first has the scores


class Regressed(MinitronError):
    """A score fell so far that the run was told to stop; the last step is saved."""


def grader(ready: Prepared, step: KDStep, world: World, grade: Grade) -> Callable[[], Sequence[Score]]:
    """A function that grades the student as it is now (a collective; empty on all ranks but 0).

    The weights are gathered and rounded as an export would round them, and computed with as `minitron eval` would.
    """

    def run() -> Sequence[Score]:
        tensors = export.gather(step, ready.export_dtype, keep=True)
        code, dtype = ready.options.trust_remote_code, choose_dtype("auto", world.device)
        model = model_of_tensors(load_config(ready.models.student, code), tensors, dtype, world.device)
        found = grade(Subject(model, ready.models.tokenizer, world.device, dtype, code, world))
        world.barrier()
        return found if world.first else ()

    return run


def logged(scores: Sequence[Score]) -> dict[str, float]:
    """Scores as they are written to the metrics."""
    values = {SCORE + score.name: score.value for score in scores}
    return values | {ERROR + score.name: score.stderr for score in scores if score.stderr is not None}


def regressions(scores: Sequence[Score], lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """The scores that are clearly below the best of the metrics' earlier `lines`, in words."""
    found = []
    for score in scores:
        before = [(line[SCORE + score.name], line["step"], line.get(ERROR + score.name)) for line in lines
                  if line.get(SCORE + score.name) is not None]  # fmt: skip
        if not before or score.stderr is None:
            continue
        sign = 1.0 if score.higher_is_better else -1.0
        best, step, error = max(before, key=lambda known: sign * known[0])
        room = _REGRESSION * ((error or 0.0) ** 2 + score.stderr**2) ** 0.5
        if sign * (best - score.value) > room:
            found.append(f"{score.name} {score.value:.4f}, {best:.4f} at step {step}")
    return found
