"""Which domain each row of a step belongs to, and the how-manieth of it: a pure function of the step."""

from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np

from minitron_cli.data.mixture import counts, exact_weights, owed_after, sequence
from minitron_cli.errors import MinitronError

Phase = tuple[int, tuple[float, ...]]


@dataclass(frozen=True, slots=True, eq=False)
class Span:
    """A stretch of steps with one mixture; `used` (domain,) are the rows that each domain has given before it, `owed`
    the fractions of a row that it lacks of its shares so far.
    """

    first_step: int
    weights: tuple[int, ...]
    used: np.ndarray
    owed: tuple[Fraction, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Schedule:
    """`global_batch` rows a step, mixed by `weights`; `phases` = ((until_step, weights), ...) come before.

    Weights of a phase hold for the steps below its `until_step`, `weights` after the last. A domain goes on where it
    was when the weights change.
    """

    weights: tuple[float, ...]
    global_batch: int
    phases: tuple[Phase, ...] = ()
    _spans: tuple[Span, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        assert self.global_batch > 0, "a step without rows"
        untils = [until for until, _ in self.phases]
        if untils != sorted(set(untils)) or any(until <= 0 for until in untils):
            raise MinitronError(f"phases end at steps {untils}", "give them in ascending order, each above 0")
        spans: list[Span] = []
        first, used = 0, np.zeros(len(self.weights), np.int64)
        owed: tuple[Fraction, ...] = ()
        for until, shares in self.phases:
            if len(shares) != len(self.weights):
                raise MinitronError(
                    f"{len(shares)} weights for {len(self.weights)} sources in the phase until step {until}",
                    "give one weight per source",
                )
            spans.append(Span(first, exact_weights(shares), used, owed))
            rows = (until - first) * self.global_batch
            used = used + counts(spans[-1].weights, rows, owed)
            owed = owed_after(spans[-1].weights, rows, owed)
            first = until
        object.__setattr__(self, "_spans", (*spans, Span(first, exact_weights(self.weights), used, owed)))

    def numbers(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Domain of every row of `step`, and its number among all rows of that domain: two (global_batch,) int64."""
        span = self._span(step)
        start = (step - span.first_step) * self.global_batch
        domains, numbers = sequence(span.weights, start, start + self.global_batch, span.owed)
        return domains, numbers + span.used[domains]

    def used(self, step: int) -> np.ndarray:
        """Rows that each domain has given when `step` begins: (domain,) int64."""
        span = self._span(step)
        return span.used + counts(span.weights, (step - span.first_step) * self.global_batch, span.owed)

    def identity(self) -> dict[str, Any]:
        return {
            "global_batch": self.global_batch,
            "weights": list(self.weights),
            "phases": [[until, list(weights)] for until, weights in self.phases],
        }

    def _span(self, step: int) -> Span:
        return next(span for span in reversed(self._spans) if span.first_step <= step)
