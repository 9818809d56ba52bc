"""The terms of a step's loss. The step and the loop know none of them by name: `terms_of` chooses them.

A term says which states it wants, gives its part of the loss of a micro-batch, may own parameters, and may follow the
sums of a whole step. Its parameters and buffers are saved, sharded and resumed with the student's.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minitron_cli.errors import MinitronError
from minitron_cli.training.cached_logits.layout import Cached
from minitron_cli.training.head import Head, head_of
from minitron_cli.training.losses import (
    Teacher,
    fused_cached_distillation,
    fused_cross_entropy,
    fused_distillation,
    shared_vocab,
)
from minitron_cli.training.objectives import EMBEDDING, Objective
from minitron_cli.training.reading import Match
from minitron_cli.training.student import projection


class Requests(NamedTuple):
    """The blocks whose states a term reads, of the student and of the first teacher; -1 is the embedding."""

    student: tuple[int, ...] = ()
    teacher: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Side:
    """One model in a micro-batch: its last hidden state (B, S, H), normed, and states (B, S, H) by block.

    Those of a teacher stand at the student's places. `match` is there where it has a larger vocabulary: see reading.py.
    """

    model: nn.Module
    last: Tensor
    states: Mapping[int, Tensor]
    match: Match | None = None

    @property
    def head(self) -> Head:
        """Its head; of a teacher with a larger vocabulary, the rows of the student's tokens."""
        return replace(head_of(self.model), rows=None if self.match is None else self.match.image)


@dataclass(frozen=True, slots=True)
class Context:
    """What a term sees of a micro-batch: ids (B, S) int64 and weights (B, S) of predicting the next token.

    weights = mask / global tokens, so that sums over micro-batches and ranks are means over the global batch; their
    last column is 0. `cached` are the cached logits of a teacher, B * S rows.
    """

    ids: Tensor
    weights: Tensor
    student: Side
    teachers: Sequence[Side]
    cached: Cached | None

    @property
    def targets(self) -> Tensor:
        """The next token of each (B * S,)."""
        return self.ids.roll(-1, dims=1).flatten()


class ParamGroup(NamedTuple):
    """Parameters of a term that are not trained as the student's: `rate` times its learning rate, without decay.

    `maximize` ascends the loss. With `clip` their gradient norm is clipped apart, else together with the student's.
    """

    parameters: Sequence[nn.Parameter]
    rate: float = 1.0
    maximize: bool = False
    clip: float | None = None


class Term(nn.Module):
    """A part of the loss; the defaults are those of a term without states, groups or memory."""

    name: str
    requests = Requests()
    # Submodules whose parameters stay float32 where the student's are cast; they are used by calling the submodule.
    exact: Sequence[nn.Module] = ()

    def param_groups(self) -> Sequence[ParamGroup]:
        """The groups of parameters with settings of their own; all other parameters are trained as the student's."""
        return ()

    def before_forward(self) -> None:
        """Called before the student runs, in every forward of the step."""

    def loss(self, context: Context) -> tuple[Tensor, dict[str, Tensor]]:
        """The part of the loss to run backward from, and the values to log by name: all scalars."""
        raise NotImplementedError

    def after_update(self, values: Mapping[str, Tensor | float]) -> None:
        """Called after each update of the weights with the global sums of the step's values."""

    def absorber(self) -> Callable[[str, Tensor], Tensor]:
        """What the term leaves in the student: (name in memory, whole float tensor) -> the tensor to export.

        A collective, which is called once for all tensors; what it returns is not.
        """
        return lambda name, tensor: tensor


class Logits(Term):
    """The divergence from the teachers, in memory or cached, and the hard labels mixed into it: one softmax for both.

    Without either teachers or cached logits it is the cross-entropy with the hard labels alone: plain training.
    Without grad mode it also reports agreement, the share of tokens on which student and teacher have the same top-1.
    Where a teacher tokenises the text differently, only the hard labels are learned: `unmatched` is the cross-entropy
    of those tokens, summed like the others, and `unmatched_share` their share.
    """

    name = "logits"

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.objective = objective

    def loss(self, context: Context) -> tuple[Tensor, dict[str, Tensor]]:
        cached, wanted, measuring = context.cached, self.objective, not torch.is_grad_enabled()
        last, head, weights = context.student.last.flatten(0, 1), context.student.head, context.weights.flatten()
        common: dict[str, Any] = {"vocab": wanted.vocab, "chunk_tokens": wanted.chunk_tokens}
        if not context.teachers and cached is None:
            sums = fused_cross_entropy(last, head, context.targets, weights, **common)
            return sums.loss, {"ce": sums.ce}
        # At temperature 1 the cross-entropy falls out of the same softmax; otherwise it is made only when asked for.
        matched = _matched(context.teachers) if cached is None else cached.matched
        with_ce = measuring or wanted.ce_weight > 0 or wanted.divergence.temperature == 1.0 or matched is not None
        common |= {"div": wanted.divergence, "kd_weight": wanted.kd_weight, "ce_weight": wanted.ce_weight}
        common["targets"] = context.targets if with_ce else None
        if cached is not None:
            sums = fused_cached_distillation(last, head, cached, weights, **common)
        else:
            teachers = self._teachers(context.teachers)
            common["matched"] = matched
            sums = fused_distillation(last, head, teachers, weights, agreement=measuring, **common)
        values = {"kd": sums.kd} | ({"ce": sums.ce} if with_ce else {})
        if matched is not None:
            values |= {"unmatched": sums.unmatched, "unmatched_share": weights[~matched].sum()}
        return sums.loss, values | ({"agreement": sums.agreement} if measuring and cached is None else {})

    def _teachers(self, sides: Sequence[Side]) -> list[Teacher]:
        shares = self.objective.shares or (1.0,) * len(sides)
        return [Teacher(side.last.flatten(0, 1), side.head, share) for side, share in zip(sides, shares)]


def _matched(teachers: Sequence[Side]) -> Tensor | None:
    """Where the next token is the same to all (B * S,) bool; None where all have the student's vocabulary."""
    matches = [side.match.next for side in teachers if side.match is not None]
    return torch.stack(matches).all(0).flatten() if matches else None


class States(Term):
    """alpha * (hidden + embedding): states of mapped blocks and of the embedding against the first teacher's.

    Owns the map to the teacher's width and alpha. Alpha is fixed, or kd / (hidden + embedding) of the last step's
    *global* sums (Minitron, arXiv 2407.14679, section 3), so that neither micro-batches nor ranks matter; in the first
    step it is 0.
    """

    name = "states"
    alpha: Tensor

    def __init__(self, objective: Objective, widths: tuple[int, int], origin: np.ndarray | None, seed: int) -> None:
        super().__init__()
        self.objective = objective
        self.requests = Requests(*(tuple(blocks) for blocks in zip(*objective.pairs)))
        self.projection = projection(*widths, origin, seed)
        self.register_buffer("alpha", torch.tensor(objective.alpha or 0.0))

    def loss(self, context: Context) -> tuple[Tensor, dict[str, Tensor]]:
        student, teacher, match = context.student.states, context.teachers[0].states, context.teachers[0].match
        found: dict[str, list[Tensor]] = {}
        for of_student, of_teacher in self.objective.pairs:
            mapped = student[of_student] if self.projection is None else self.projection(student[of_student])
            target = teacher[of_teacher].to(mapped.device)
            weights = context.weights
            if match is not None:
                weights = weights * (match.token if of_student == EMBEDDING else match.text)
            value = (_distance(self.objective.metric, mapped.float(), target.float()) * weights).sum()
            found.setdefault("embedding" if of_student == EMBEDDING else "hidden", []).append(value)
        values = {name: torch.stack(each).mean() for name, each in found.items()}
        return self.alpha * torch.stack(_parts(values)).sum(), values

    @torch.no_grad()
    def after_update(self, values: Mapping[str, Tensor | float]) -> None:
        if self.objective.alpha is not None:
            return
        total = torch.stack(_parts(values)).sum()
        self.alpha.copy_(torch.where(total > 0, torch.as_tensor(values["kd"]) / total, 0.0))


def _parts(values: Mapping[str, Tensor | float]) -> list[Tensor]:
    return [torch.as_tensor(values[name]) for name in ("hidden", "embedding") if name in values]


def _distance(metric: str, student: Tensor, teacher: Tensor) -> Tensor:
    """Per-token distance (B, S) of float32 states (B, S, H): 1 - cosine, or the mean squared difference."""
    if metric == "mse":
        return (student - teacher).square().mean(-1)
    return 1 - F.cosine_similarity(student, teacher, dim=-1)


def terms_of(
    objective: Objective,
    student: nn.Module,
    teachers: Sequence[nn.Module],
    *,
    origin: np.ndarray | None = None,
    seed: int = 0,
    images: Sequence[Tensor | None] = (),
) -> tuple[Term, ...]:
    """The terms of an objective between these models; refuses what would train towards the wrong thing."""
    rows = (None, *(images or (None,) * len(teachers)))
    heads = [replace(head_of(model), rows=own) for model, own in zip((student, *teachers), rows)]
    shared_vocab(heads, objective.vocab)
    if objective.shares and len(objective.shares) != len(teachers):
        raise MinitronError(
            f"{len(objective.shares)} shares for {len(teachers)} teachers", "give one share per teacher, or none"
        )
    if not objective.pairs:
        return (Logits(objective),)
    if not teachers:
        raise MinitronError(
            "the loss on hidden states needs a teacher in memory", "give --teacher MODEL, or --loss logits"
        )
    widths = (heads[0].weight.shape[1], heads[1].weight.shape[1])
    return (Logits(objective), States(objective, widths, origin, seed))
