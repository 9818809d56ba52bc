"""Refitting experts: the down projections of those that stay lead to the source's hidden states, as well as they can.

For each mixture, in the order of the layers, the cut model runs on calibration text under its own router, refitted as
far as it is. With f the gated inputs of all its experts' down projections side by side (zeros where an expert was not
chosen), and t what the source's hidden states after that layer have and the cut model's lack, the change D of the
projections is

    D = argmin E|t - c D f|^2 + ridge mean(diag G) |c D|^2,   c D = C (G + ridge mean(diag G) I)^-1,   G = E[f f^T],
    C = E[t f^T]

with c what a mixture's output is multiplied by on its way into the residual stream, 1 in most models. It is solved
jointly for `together` experts at a time, the later ones on what the earlier left (a round of block Gauss-Seidel). The
ridge pulls the projections towards what they were, those of seldom chosen experts most; where nothing was cut t is 0
and no weight changes. Compensation (see `compensate`) refits a map to the inputs that it keeps; this makes up for
experts that are gone, and for what other cuts left behind.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.hf.context import batch_size
from minitron_cli.hf.readers import EXPERT, EXPERT_FFN
from minitron_cli.prune.change import Change, ChangeOf
from minitron_cli.prune.compensate import DOUBLE
from minitron_cli.prune.compensation_cost import FLOPS_PER_SECOND
from minitron_cli.prune.expert_parts import part_of
from minitron_cli.spec.axes import Weight, reads
from minitron_cli.spec.family import Match
from minitron_cli.spec.plan import Plan
from minitron_cli.spec.shape import Shape, copies, flops_per_token, num_elements

WHAT = "hidden states"  # the name of the reconstruction error
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, np.inf)  # tried by `auto`, judged on the half of the text that was not solved on
_ITEM = 4  # bytes of a computed value: distances between states that are alike want float32
_COPIES = 3  # matrices as wide as G that are alive while it is solved: of two halves of the text, and a factor


@dataclass(frozen=True, slots=True, eq=False)
class ExpertRefit:
    """How experts are refitted: how many `together` (None: all), the relative ridge (None: the best of RIDGES by
    held-out error), calibration rows (sample, token) int64 and what identifies them."""

    together: int | None
    ridge: float | None
    rows: np.ndarray
    identity: Mapping[str, Any]


def groups(count: int, together: int | None) -> list[range]:
    """The experts of a layer, those that are refitted together side by side."""
    step = together or count
    return [range(first, min(first + step, count)) for first in range(0, count, step)]


def item_bytes(width: int) -> int:
    """Of the numbers in G: it costs nothing to be exact where it is narrow."""
    return 8 if width <= DOUBLE else 4


def solution_bytes(width: int, hidden: int) -> int:
    """What solving holds: G, C and what they become."""
    return _COPIES * item_bytes(width) * width * (width + hidden)


@dataclass(frozen=True, slots=True)
class RefitCost:
    """What refitting adds to a prune: tokens of text, FLOPs, and bytes at the peak.

    Those are of the solution, of two blocks of the source beside one of the cut model with a batch, and of both models'
    hidden states, which are on disk where they would fill half of memory.
    """

    tokens: int
    inputs: int  # that are solved for at a time
    flops: float
    solution: int
    blocks: int
    states: int

    @property
    def seconds(self) -> float:
        return self.flops / FLOPS_PER_SECOND

    @property
    def memory(self) -> int:
        return self.solution + self.blocks + self.states


def refit_cost(
    weights: Sequence[Weight], source: Shape, target: Shape, together: int | None, samples: int, seq_len: int
) -> RefitCost:
    """From shapes alone. G takes (experts together x their neurons)^2 numbers, and twice as many more to be solved."""
    kept, inner, hidden, tokens = target[EXPERT], target[EXPERT_FFN], target["hidden"], samples * seq_len
    parts = groups(kept, together)
    width = len(parts[0]) * inner
    chosen = max(1.0, target["expert_active"] * len(parts[0]) / kept) * inner  # of the features of a token, not 0
    one = tokens * chosen * (chosen + 2 * hidden) + len(RIDGES) * (width**3 / 3 + 4 * width**2 * hidden)
    passes = flops_per_token(weights, source, seq_len) + (len(parts) + 1) * flops_per_token(weights, target, seq_len)
    batch = (
        min(batch_size(None, seq_len, "cpu"), samples) * seq_len * (8 * hidden + 4 * inner * target["expert_active"])
    )
    return RefitCost(
        tokens=tokens,
        inputs=width,
        flops=float(tokens * passes + len(target.layers_of(EXPERT)) * len(parts) * one),
        solution=solution_bytes(width, hidden),
        blocks=_ITEM * (2 * _block(weights, source) + _block(weights, target) + batch),
        states=_ITEM * tokens * (source["hidden"] + hidden),
    )


def _block(weights: Sequence[Weight], shape: Shape) -> int:
    """Elements of a layer, of the kinds together that its weights are of."""
    layered = [w for w in weights if "layer" in w.name_axes and shape.layers_of_kind(w.kind)]
    return sum(num_elements(w, shape) * copies(w, shape) // len(shape.layers_of_kind(w.kind)) for w in layered)


def refitted(match: Match) -> bool:
    """Whether a tensor is one that refitting changes."""
    return EXPERT_FFN in reads(match.weight)


def taken(change_of: ChangeOf, made: Checkpoint, plan: Plan) -> ChangeOf:
    """The same changes, but for what was refitted: that is what `made` holds, whatever the source does."""
    lines = {(m.weight.name, m.layer, m.expert): m for m in made.matches.values() if refitted(m)}

    def of(match: Match, expert: int | None, keep: Sequence[np.ndarray | None], shape: Sequence[int]) -> Change | None:
        if not refitted(match) or match.layer is None or expert is None:
            return change_of(match, expert, keep, shape)
        layer = plan.target_layer(match.layer)
        assert layer is not None
        place = plan.target_expert(layer, expert)
        assert place is not None
        found = lines.get((match.weight.name, layer, None if match.expert is None else place))
        return change_of(match, expert, keep, shape) if found is None else Taken(part_of(made, found, place).bits())

    return of


@dataclass(frozen=True, slots=True, eq=False)
class Taken:
    """A tensor, or one expert's part of it, that is what was made of it."""

    bits: np.ndarray

    @property
    def whole(self) -> bool:
        return True

    def apply(self, raw: np.ndarray, dtype: str, columns: np.ndarray | None) -> np.ndarray:
        """What was made, whatever comes in."""
        return self.bits
