"""The result of a search: candidates and their measurements, from best to worst."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from minitron_cli.search.speed import Speed
from minitron_cli.spec.search import Candidate
from minitron_cli.spec.shape import Shape


@dataclass(slots=True)
class Entry:
    """One candidate of the search. Losses are per held-out window, in the request's unit: (window,)."""

    candidate: Candidate
    forecast: float
    losses: np.ndarray | None = None
    refined: np.ndarray | None = None
    tied: bool = False
    speed: Speed | None = None

    @property
    def stage(self) -> int:
        """How far it got: 2 refined, 1 measured, 0 only forecast."""
        return 2 if self.refined is not None else 1 if self.losses is not None else 0

    @property
    def latest(self) -> np.ndarray | None:
        return self.refined if self.refined is not None else self.losses

    def sort_key(self) -> tuple[float, float]:
        latest = self.latest
        return (-self.stage, float(latest.mean()) if latest is not None else self.forecast)


@dataclass(frozen=True, slots=True)
class SearchResult:
    """Entries from best to worst, the source's own loss, and the weights of the forecast (loss per feature unit).

    Losses are in `unit`. `longer` is the relative increase of the counted text's tokens by size of vocabulary.
    `too_slow` were timed and do not meet the budget; they and those skipped for it are not among the entries.
    """

    source: Shape
    source_loss: float | None
    entries: list[Entry]
    weights: Mapping[str, float] = field(default_factory=dict)
    too_slow: list[Entry] = field(default_factory=list)
    unit: str = "nats per token"
    longer: Mapping[int, float] = field(default_factory=dict)


def standard_error(values: np.ndarray) -> float:
    """Standard error of a mean over windows."""
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")


def mark_ties(entries: Sequence[Entry]) -> None:
    """A tie with the best of the same stage: the paired difference is within two standard errors."""
    if not entries or entries[0].latest is None:
        return
    best = entries[0]
    for entry in entries[1:]:
        if entry.stage == best.stage and entry.latest is not None and best.latest is not None:
            difference = entry.latest - best.latest
            entry.tied = bool(difference.mean() <= 2 * np.nan_to_num(standard_error(difference)))
