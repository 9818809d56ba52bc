"""One distillation step as the root module: every weight it uses is gathered for the whole of its forward."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minitron_cli.errors import MinitronError
from minitron_cli.training import losses, naive
from minitron_cli.training.cached_logits.topk import TopK
from minitron_cli.training.fused import LossSums
from minitron_cli.training.head import check_head, head_of
from minitron_cli.training.losses import Teacher, shared_vocab
from minitron_cli.training.objectives import EMBEDDING, LOGITS_ONLY, Objective
from minitron_cli.training.student import Taps, backbone_of, projection


class KDStep(nn.Module):
    """Student, frozen teachers and objective; forward returns sums that are already normalised over the global batch.

    Parameters and state dict are `student.*`, `projection.*` and the buffer `alpha`: the teachers are not among them,
    stay in eval mode, and may be on another device. Without a teacher and a recorded one this is plain training.
    """

    alpha: Tensor

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | Sequence[nn.Module] | None = None,
        objective: Objective = LOGITS_ONLY,
        *,
        origin: np.ndarray | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        teachers = () if teacher is None else (teacher,) if isinstance(teacher, nn.Module) else tuple(teacher)
        self.student, self.objective = student, objective
        # In a tuple, so that nn.Module does not register them.
        self._teachers = tuple(t.eval().requires_grad_(False) for t in teachers)
        _check(student, self._teachers, objective)
        pairs = objective.pairs
        self._student_taps = Taps(backbone_of(student), [s for s, _ in pairs])
        # States are compared with those of the first teacher only.
        self._teacher_taps = [
            Taps(backbone_of(t), [p for _, p in pairs] if position == 0 else [])
            for position, t in enumerate(self._teachers)
        ]
        self.projection: nn.Linear | None = None
        if pairs:
            widths = (_width(student), _width(self._teachers[0]))
            self.projection = projection(*widths, origin, seed)
            self.register_buffer("alpha", torch.tensor(objective.alpha or 0.0))

    @property
    def teachers(self) -> tuple[nn.Module, ...]:
        """The frozen teachers, in the order of their shares."""
        return self._teachers

    def forward(
        self, ids: Tensor, weights: Tensor, position_ids: Tensor | None = None, recorded: TopK | None = None
    ) -> dict[str, Tensor]:
        """ids (B, S) int64, weights (B, S) of predicting the next token, mask / global tokens -> scalar sums.

        The last column of `weights` is 0. `loss` is what to run backward from; kd, ce, hidden and embedding are its
        parts. Without grad mode there is also agreement, the share of tokens on which student and teacher have the same
        top-1. `recorded` stands for the teacher: B * S rows. `position_ids` (B, S) that start again at 0 keep the
        documents of a row apart.
        """
        with torch.no_grad():
            taught = [taps.run(ids, position_ids) for taps in self._teacher_taps]
        last, states = self._student_taps.run(ids, position_ids)
        found = self._head_loss(last.flatten(0, 1), ids, weights.flatten(), [hidden for hidden, _ in taught], recorded)
        if self.objective.pairs:
            found |= self._state_losses(states, taught[0][1], weights)
            parts = [found[key] for key in ("hidden", "embedding") if key in found]
            found["loss"] = found["loss"] + self.alpha * torch.stack(parts).sum()
        return found

    @torch.no_grad()
    def update_alpha(self, sums: Mapping[str, Tensor | float]) -> None:
        """Set the dynamic alpha for the next step: kd / (hidden + embedding) of the last step's *global* sums.

        From the previous step, so that neither micro-batches nor ranks matter. In the first step it is 0.
        """
        if not self.objective.pairs or self.objective.alpha is not None:
            return
        kd, *parts = (torch.as_tensor(sums[key]) for key in ("kd", "hidden", "embedding") if key in sums)
        total = torch.stack(parts).sum()
        self.alpha.copy_(torch.where(total > 0, kd / total, 0.0))

    def _head_loss(
        self, last: Tensor, ids: Tensor, weights: Tensor, taught: list[Tensor], recorded: TopK | None
    ) -> dict[str, Tensor]:
        """The terms over the vocabulary: last (N, H) student states, taught (B, S, H_t) one per teacher."""
        wanted, head, targets = self.objective, head_of(self.student), ids.roll(-1, dims=1).flatten()
        by_label, by_teacher, by_record = _LOSSES[wanted.implementation]
        common: dict[str, Any] = {"vocab": wanted.vocab, "chunk_tokens": wanted.chunk_tokens}
        if not taught and recorded is None:
            sums = by_label(last, head, targets, weights, **common)
            return {"loss": sums.loss, "ce": sums.ce}
        measuring = not torch.is_grad_enabled()
        # At temperature 1 the cross-entropy falls out of the same softmax; otherwise it is made only when asked for.
        with_ce = measuring or wanted.ce_weight > 0 or wanted.divergence.temperature == 1.0
        common |= {"div": wanted.divergence, "targets": targets if with_ce else None}
        common |= {"kd_weight": wanted.kd_weight, "ce_weight": wanted.ce_weight}
        if recorded is not None:
            sums = by_record(last, head, recorded, weights, **common)
        else:
            shares = wanted.shares or (1.0,) * len(taught)
            teachers = [Teacher(h.flatten(0, 1), head_of(m), s) for h, m, s in zip(taught, self._teachers, shares)]
            sums = by_teacher(last, head, teachers, weights, agreement=measuring, **common)
        found = {"loss": sums.loss, "kd": sums.kd}
        found |= {"ce": sums.ce} if with_ce else {}
        return found | ({"agreement": sums.agreement} if measuring and recorded is None else {})

    def _state_losses(
        self, student: Mapping[int, Tensor], teacher: Mapping[int, Tensor], weights: Tensor
    ) -> dict[str, Tensor]:
        """`hidden`, the mean over the mapped pairs of blocks, and `embedding`: states (B, S, H), weights (B, S)."""
        found: dict[str, list[Tensor]] = {}
        for of_student, of_teacher in self.objective.pairs:
            mapped = student[of_student] if self.projection is None else self.projection(student[of_student])
            target = teacher[of_teacher].to(mapped.device)
            value = (_distance(self.objective.metric, mapped.float(), target.float()) * weights).sum()
            found.setdefault("embedding" if of_student == EMBEDDING else "hidden", []).append(value)
        return {name: torch.stack(values).mean() for name, values in found.items()}


# Cross-entropy, divergence from teachers in memory, divergence from a recorded teacher.
_LOSSES: dict[str, tuple[Callable[..., LossSums], ...]] = {
    "fused": (losses.fused_cross_entropy, losses.fused_distillation, losses.fused_topk_distillation),
    "naive": (naive.naive_cross_entropy, naive.naive_distillation, naive.naive_topk_distillation),
}


def _distance(metric: str, student: Tensor, teacher: Tensor) -> Tensor:
    """Per-token distance (B, S) of float32 states (B, S, H): 1 - cosine, or the mean squared difference."""
    if metric == "mse":
        return (student - teacher).square().mean(-1)
    return 1 - F.cosine_similarity(student, teacher, dim=-1)


def _check(student: nn.Module, teachers: Sequence[nn.Module], objective: Objective) -> None:
    """Refuse what would train towards the wrong thing: other heads, other vocabularies, teachers without a share."""
    for model, label in ((student, "student"), *((t, "teacher") for t in teachers)):
        check_head(model, label)
    shared_vocab([head_of(model) for model in (student, *teachers)], objective.vocab)
    if objective.shares and len(objective.shares) != len(teachers):
        raise MinitronError(
            f"{len(objective.shares)} shares for {len(teachers)} teachers", "give one share per teacher, or none"
        )
    if objective.pairs and not teachers:
        raise MinitronError(
            "the loss on hidden states needs a teacher in memory", "give --teacher MODEL, or --loss logits"
        )


def _width(model: nn.Module) -> int:
    return head_of(model).weight.shape[1]
