"""The request of a search."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from minitron_cli.errors import MinitronError
from minitron_cli.search.speed import SpeedBudget
from minitron_cli.spec.axes import COUNTED_AXES
from minitron_cli.spec.limits import SEED, above, count, require
from minitron_cli.spec.search import Window
from minitron_cli.spec.shape import Shape, shape_name


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

    @property
    def cuts_vocabulary(self) -> bool:
        """Whether the grid has sizes of the vocabulary: candidates then read the text in different tokens."""
        return any(axis in (self.grid or {}) for axis in COUNTED_AXES)

    @property
    def unit(self) -> str:
        """What losses are measured in."""
        return "bits per byte" if self.cuts_vocabulary else "nats per token"

    def name(self, shape: Shape) -> str:
        """What a candidate is called, in its directory's name too."""
        return shape_name(shape, vocab=self.cuts_vocabulary)

    def __post_init__(self) -> None:
        require(self, "search")
        if self.ffn_factors and "ffn" in (self.grid or {}):
            raise MinitronError("--ffn-factors and --grid ffn=... both choose --ffn", "give only one of them")
