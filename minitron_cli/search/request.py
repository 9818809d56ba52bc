"""The request of a search."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from minitron_cli.errors import MinitronError
from minitron_cli.search.speed import SpeedBudget
from minitron_cli.spec.limits import SEED, above, count, violations
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
    measure: Annotated[int, count()] = 8
    eval_windows: Annotated[int, count()] = 64
    seq_len: Annotated[int | None, count(2, 2**24)] = None
    refine: Annotated[int, count(0)] = 0
    refine_tokens: Annotated[int, count(0)] = 0
    batch: Annotated[int, count(1, 2**20)] = 32
    lr: Annotated[float, above(0)] = 1e-4
    separator: str = "auto"
    text_field: str | None = None
    device: str = "auto"
    devices: tuple[str, ...] = ()
    seed: Annotated[int, SEED] = 0
    speed: SpeedBudget | None = None

    def __post_init__(self) -> None:
        if wrong := violations(self, lambda name: "--" + name.replace("_", "-")):
            raise MinitronError("; ".join(wrong), "see `minitron search --help`")
