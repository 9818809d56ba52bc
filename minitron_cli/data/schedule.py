"""Which domain each row of a step belongs to, and its number among the rows of that domain: a function of the step."""

from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from minitron_cli.data.mixture import counts, exact_weights, owed_after, sequence
from minitron_cli.errors import MinitronError


class Phase(NamedTuple):
    """What the steps below `until` read: mixed by `weights`, `global_batch` rows a step, of `seq_len` tokens. What is
    None is as after the last phase.
    """

    until: int
    weights: tuple[float, ...] | None = None
    global_batch: int | None = None
    seq_len: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Span:
    """A stretch of steps with one mixture; `used` (domain,) are the rows that each domain has given before it, `owed`
    the fractions of a row that it lacks of its shares so far. `seq_len` is None where no phase has its own.
    """

    first_step: int
    weights: tuple[int, ...]
    used: np.ndarray
    owed: tuple[Fraction, ...]
    global_batch: int
    seq_len: int | None


@dataclass(frozen=True, slots=True, eq=False)
class Schedule:
    """`global_batch` rows a step, mixed by `weights`, once the `phases` are over. A domain goes on where it was."""

    weights: tuple[float, ...]
    global_batch: int
    phases: tuple[Phase, ...] = ()
    spans: tuple[Span, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        assert self.global_batch > 0, "a step without rows"
        untils = [phase.until for phase in self.phases]
        if untils != sorted(set(untils)) or any(until <= 0 for until in untils):
            raise MinitronError(f"phases end at steps {untils}", "give them in ascending order, each above 0")
        spans: list[Span] = []
        first, used = 0, np.zeros(len(self.weights), np.int64)
        owed: tuple[Fraction, ...] = ()
        for until, given, batch, seq_len in self.phases:
            shares = given or self.weights
            if len(shares) != len(self.weights):
                raise MinitronError(
                    f"{len(shares)} weights for {len(self.weights)} sources in the phase until step {until}",
                    "give one weight per source",
                )
            spans.append(Span(first, exact_weights(shares), used, owed, batch or self.global_batch, seq_len))
            rows = (until - first) * spans[-1].global_batch
            used = used + counts(spans[-1].weights, rows, owed)
            owed = owed_after(spans[-1].weights, rows, owed)
            first = until
        last = Span(first, exact_weights(self.weights), used, owed, self.global_batch, None)
        object.__setattr__(self, "spans", (*spans, last))

    def numbers(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Domain of every row of `step`, and its number among all rows of that domain: two (global_batch,) int64."""
        span = self.spans[self.span_at(step)]
        start = (step - span.first_step) * span.global_batch
        domains, numbers = sequence(span.weights, start, start + span.global_batch, span.owed)
        return domains, numbers + span.used[domains]

    def used(self, step: int) -> np.ndarray:
        """Rows that each domain has given when `step` begins: (domain,) int64."""
        span = self.spans[self.span_at(step)]
        return span.used + counts(span.weights, (step - span.first_step) * span.global_batch, span.owed)

    def identity(self) -> dict[str, Any]:
        return {
            "global_batch": self.global_batch,
            "weights": list(self.weights),
            "phases": [
                [phase.until, phase.weights and list(phase.weights), *([sizes] if any(sizes := phase[2:]) else [])]
                for phase in self.phases
            ],
        }

    def span_at(self, step: int) -> int:
        """The number of the span that `step` lies in."""
        return next(i for i in reversed(range(len(self.spans))) if self.spans[i].first_step <= step)
