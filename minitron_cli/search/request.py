"""The request of a search."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from minitron_cli.search.speed import SpeedBudget
from minitron_cli.spec.search import Window


@dataclass(frozen=True, slots=True)
class SearchRequest:
    """`measure` shapes are cut and their held-out loss measured; `refine` of them are also distilled for a while.

    With `speed` those shapes are also timed, and only those that meet its budget are taken. With `devices` as many
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
