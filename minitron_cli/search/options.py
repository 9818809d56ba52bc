"""What a search is asked for, and what it finds."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from minitron_cli.search.speed import Speed, SpeedBudget
from minitron_cli.spec.search import Candidate, Window
from minitron_cli.spec.shape import Shape


@dataclass(frozen=True, slots=True)
class SearchOptions:
    """`measure` shapes are cut and their held-out loss measured; `refine` of them are also distilled for a while.

    With `speed` those shapes are also timed, and only what holds its budget is taken. With `devices` as many
    distillations run at once; else they run one after the other on `device`.
    """

    model: str
    scores: Path
    data: tuple[str, ...]
    eval_data: tuple[str, ...]
    output: Path
    window: Window
    grid: Mapping[str, tuple[int, ...]] | None = None
    ffn_factors: tuple[float, ...] = ()
    measure: int = 8
    calibrate: int = 4
    eval_windows: int = 64
    seq_len: int | None = None
    refine: int = 0
    refine_tokens: int = 0
    batch: int = 32
    lr: float = 1e-4
    separator: str = "auto"
    text_field: str | None = None
    device: str = "auto"
    devices: tuple[str, ...] = ()
    seed: int = 0
    speed: SpeedBudget | None = None


@dataclass(slots=True)
class Entry:
    """One candidate on its way through the search. Losses are per held-out window, nats per token: (window,)."""

    candidate: Candidate
    forecast: float
    losses: np.ndarray | None = None
    refined: np.ndarray | None = None
    tied: bool = False
    speed: Speed | None = None

    @property
    def stage(self) -> int:
        """How far it came: 2 refined, 1 measured, 0 only forecast."""
        return 2 if self.refined is not None else 1 if self.losses is not None else 0

    @property
    def latest(self) -> np.ndarray | None:
        return self.refined if self.refined is not None else self.losses

    def sort_key(self) -> tuple[float, float]:
        latest = self.latest
        return (-self.stage, float(latest.mean()) if latest is not None else self.forecast)


@dataclass(frozen=True, slots=True)
class SearchResult:
    """Entries from best to worst, the source's own loss, and the weights of the forecast (nats per feature unit).

    `too_slow` were timed and do not hold the budget; they and what was passed over for it are not among the entries.
    """

    source: Shape
    source_loss: float | None
    entries: list[Entry]
    weights: Mapping[str, float] = field(default_factory=dict)
    too_slow: list[Entry] = field(default_factory=list)


def standard_error(values: np.ndarray) -> float:
    """Standard error of a mean over windows."""
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")
