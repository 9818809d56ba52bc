"""How far a mixture's routers have drifted from its teacher's, measured where the two are compared without training.

    router_drift = mean over tokens and layers of |T \\ S| / k

S are the k experts that a token of the student is routed to. T are what becomes of the k experts that weigh most among
those of the teacher: those that the student has, or has merged into another. So 0 means that the student makes every
choice of the teacher that it can make, and an expert that was dropped counts for nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from minitron_cli.hf.parts import experts_of
from minitron_cli.spec.plan import Plan
from minitron_cli.spec.shape import Shape
from minitron_cli.training.terms import Context, Term


@dataclass(frozen=True, slots=True)
class Counterpart:
    """Two layers with experts: `experts` (teacher's expert,) int64 are what they are in the student, -1 where gone."""

    student: int
    teacher: int
    experts: np.ndarray


def counterparts(plan: Plan | None, student: Shape, teacher: Shape) -> tuple[Counterpart, ...]:
    """The layers whose experts correspond: by the plan that cut the student from a model of the teacher's depth and
    experts, or by index where both have as many. Empty where they do not, or where one of them is dense."""
    if "expert" not in student or "expert" not in teacher:
        return ()
    if plan is None:
        alike = all(student[axis] == teacher[axis] for axis in ("layer", "expert"))
        same = np.arange(teacher["expert"])
        return tuple(Counterpart(layer, layer, same) for layer in student.layers_of("expert")) if alike else ()
    if any(plan.source.get(axis) != teacher[axis] for axis in ("layer", "expert")):
        return ()
    return tuple(
        Counterpart(layer, plan.source_layer(layer), _becomes(plan, layer)) for layer in student.layers_of("expert")
    )


def _becomes(plan: Plan, layer: int) -> np.ndarray:
    if plan.merge is not None:
        return plan.merge.into[layer]
    found = np.full(plan.source["expert"], -1)
    kept = plan.kept["expert"][layer] if "expert" in plan.kept else np.arange(len(found))
    found[kept] = np.arange(len(kept))
    return found


@dataclass(slots=True)
class Choices:
    """What the routers of one model chose in the forward at hand, by layer: experts and their weights (token, k)."""

    of_layer: dict[int, tuple[Tensor, Tensor]] | None = None  # None while nothing is to be kept

    def follow(self, model: nn.Module, layers: Sequence[int]) -> None:
        for layer in layers:
            experts_of(model, layer).register_forward_pre_hook(self._keeper(layer))

    def _keeper(self, layer: int) -> Callable[[nn.Module, Any], None]:
        def keep(_: nn.Module, args: Any) -> None:  # (hidden, experts, weights): transformers' experts interface
            if self.of_layer is not None:
                self.of_layer[layer] = (args[1], args[2])

        return keep


class RouterDrift(Term):
    """Adds nothing to the loss: without grad mode it reports `router_drift`."""

    name = "routers"

    def __init__(self, student: nn.Module, teacher: nn.Module, pairs: Sequence[Counterpart]) -> None:
        super().__init__()
        self._pairs = tuple(pairs)
        self._becomes = [torch.from_numpy(pair.experts.astype(np.int64)) for pair in pairs]
        self._student, self._teacher = Choices(), Choices()
        self._student.follow(student, [pair.student for pair in pairs])
        self._teacher.follow(teacher, [pair.teacher for pair in pairs])

    def before_forward(self) -> None:
        measuring = not torch.is_grad_enabled()
        for choices in (self._student, self._teacher):
            choices.of_layer = {} if measuring else None

    def loss(self, context: Context) -> tuple[Tensor, dict[str, Tensor]]:
        nothing = context.weights.new_zeros(())
        student, teacher = self._student.of_layer, self._teacher.of_layer
        if student is None or teacher is None:
            return nothing, {}
        missed = [
            missed_share(student[pair.student][0], *teacher[pair.teacher], becomes)
            for pair, becomes in zip(self._pairs, self._becomes)
        ]
        self._student.of_layer = self._teacher.of_layer = None
        mean = torch.stack([each.to(nothing.device) for each in missed]).mean(0)
        return nothing, {"router_drift": (mean * context.weights.flatten()).sum()}


def missed_share(student: Tensor, teacher: Tensor, weights: Tensor, becomes: Tensor) -> Tensor:
    """|T \\ S| / k of every token (token,): the student's experts (token, k), the teacher's with weights (token, >= k),
    and what each of the teacher's is in the student (expert,)."""
    first = weights.topk(student.shape[1], dim=-1).indices
    wanted = becomes.to(teacher.device)[teacher.gather(1, first)].to(student.device)
    made = (wanted[:, :, None] == student[:, None, :]).any(-1)
    return ((wanted >= 0) & ~made).float().mean(-1)
