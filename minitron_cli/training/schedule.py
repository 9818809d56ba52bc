"""The learning rate as a function of the step alone: nothing to save, nothing to restore."""

import math
from dataclasses import dataclass

SCHEDULES = ("cosine", "linear", "constant", "wsd")
DECAYS = ("linear", "cosine", "sqrt", "exponential")


@dataclass(frozen=True, slots=True)
class Schedule:
    """Linear warm-up over `warmup` steps to `peak`, then `kind` down to `floor` at the last of `steps` steps.

    `decay_steps` and `decay` speak for `wsd` alone (warm-up, stable, decay; MiniCPM, arXiv 2404.06395): the rate stays
    at `peak` until the last `decay_steps` steps and falls over them in the shape named by `decay`.
    """

    kind: str
    peak: float
    floor: float
    warmup: int
    steps: int
    decay: str = "sqrt"
    decay_steps: int = 0


def learning_rate(schedule: Schedule, step: int) -> float:
    """The rate of update number `step`, counted from 0; the last update, `steps - 1`, gets the floor."""
    s = schedule
    if step < s.warmup:
        return s.peak * (step + 1) / s.warmup
    if s.kind == "constant":
        return s.peak
    shape = s.decay if s.kind == "wsd" else s.kind
    start = max(s.warmup, s.steps - s.decay_steps) if s.kind == "wsd" else s.warmup
    if step < start:
        return s.peak
    # WSD's first decay step already leaves the peak; a cosine's first step after warm-up is still at it.
    offset = 1 if s.kind == "wsd" else 0
    span = s.steps - 1 - start + offset
    progress = min(1.0, (step - start + offset) / span) if span > 0 else 1.0
    return _descend(shape, s.peak, s.floor, progress)


def _descend(shape: str, peak: float, floor: float, progress: float) -> float:
    """From `peak` at progress 0 to `floor` at progress 1."""
    if shape == "exponential":
        return peak * (floor / peak) ** progress
    left = {
        "linear": 1.0 - progress,
        "cosine": 0.5 * (1.0 + math.cos(math.pi * progress)),
        "sqrt": 1.0 - math.sqrt(progress),
    }[shape]
    return floor + (peak - floor) * left
