"""One training step as the root module: every weight it uses is gathered for the whole of its forward."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from minitron_cli.training.cached_logits.layout import Cached
from minitron_cli.training.distributed import Gathered, shard_frozen
from minitron_cli.training.head import check_head
from minitron_cli.training.objectives import LOGITS_ONLY, Objective
from minitron_cli.training.reading import Reading, match, same_ids
from minitron_cli.training.student import Taps
from minitron_cli.training.terms import Context, ParamGroup, Side, Term, terms_of

T = TypeVar("T", bound=Term)


class KDStep(nn.Module):
    """Student, frozen teachers and the terms of the loss; forward returns sums normalised over the global batch.

    Parameters and state dict are `student.*` and those of each term under its name: the teachers are not among them,
    stay in eval mode, and may be on another device. Without a teacher and cached logits this is plain training.
    `images` are a teacher's ids of the student's tokens (V,) int64, None where the teacher has the same.
    """

    def __init__(
        self,
        student: nn.Module,
        teachers: Sequence[nn.Module],
        terms: Sequence[Term],
        images: Sequence[Tensor | None] = (),
    ) -> None:
        super().__init__()
        self.student = student
        # In tuples, so that nn.Module does not register the teachers, nor a term twice.
        self._teachers = tuple(t.eval().requires_grad_(False) for t in teachers)
        self._images = list(images) or [None] * len(self._teachers)
        self._terms = tuple(terms)
        for term in terms:
            self.add_module(term.name, term)
        self._gathered: tuple[Gathered, ...] = ()
        self.check_heads()
        self._student_taps = Taps(student, [block for term in terms for block in term.requests.student])
        asked = [block for term in terms for block in term.requests.teacher]
        # States are compared with those of the first teacher only.
        self._teacher_taps = [Taps(t, [] if i else asked) for i, t in enumerate(self._teachers)]

    @property
    def teachers(self) -> tuple[nn.Module, ...]:
        """The frozen teachers, in the order of their shares."""
        return self._teachers

    def check_heads(self) -> None:
        """Refuse models whose logits are made in a way that is not known (see `check_head`); empty ones pass.

        Where weights are sharded this is a collective, and `distributed.shard` has it run like a forward.
        """
        check_head(self.student, "student")
        for index, teacher in enumerate(self._teachers):
            self._with_teacher(index, check_head, teacher, "teacher")
        self._let_teachers_go()

    def shard_teachers(self, mesh: DeviceMesh | None) -> None:
        """Split the teachers over the ranks of a mesh, before they have memory or after."""
        if mesh is not None:
            self._gathered = tuple(shard_frozen(teacher, mesh) for teacher in self._teachers)

    def _with_teacher(self, index: int, call: Callable[..., Any], *args: Any) -> Any:
        """`call(*args)`, with that teacher's embedding and head whole until `_let_teachers_go`."""
        return self._gathered[index](call, *args) if self._gathered else call(*args)

    def _let_teachers_go(self) -> None:
        for around in self._gathered:
            around.reshard()

    def param_groups(self) -> list[ParamGroup]:
        """The parameters that terms train with settings of their own."""
        return [group for term in self._terms for group in term.param_groups()]

    def forward(
        self,
        ids: Tensor,
        weights: Tensor,
        position_ids: Tensor | None = None,
        recorded: Cached | None = None,
        readings: Sequence[Reading | None] = (),
    ) -> dict[str, Tensor]:
        """ids (B, S) int64, weights (B, S) of predicting the next token, mask / global tokens -> scalar sums.

        The last column of `weights` is 0. `loss` is what to run backward from; the others are the terms' values.
        `recorded` stands for the teacher: B * S rows. `position_ids` (B, S) that start again at 0 keep the documents of
        a row apart. `readings` say how each teacher with an image reads the rows; without, it reads the student's
        tokens.
        """
        for term in self._terms:
            term.before_forward()
        with torch.no_grad():
            read = readings or (None,) * len(self._teachers)
            taught = [self._taught(index, ids, position_ids, reading) for index, reading in enumerate(read)]
        student = Side(self.student, *self._student_taps.run(ids, position_ids))
        context = Context(ids, weights, student, taught, recorded)
        losses, values = zip(*(term.loss(context) for term in self._terms))
        self._let_teachers_go()
        found = {"loss": sum(losses[1:], losses[0])}
        for of_term in values:
            found |= of_term
        return found

    def _taught(self, index: int, ids: Tensor, position_ids: Tensor | None, reading: Reading | None) -> Side:
        """What a teacher makes of rows (B, S) in the student's ids, at the student's places."""
        image = self._images[index]
        if image is not None:
            image = self._images[index] = image.to(ids.device)
        run = partial(self._with_teacher, index, self._teacher_taps[index].run)
        return side_of(self._teachers[index], run, ids, position_ids, image, reading)

    def term(self, kind: type[T]) -> T | None:
        """The term of a kind, None where there is none."""
        return next((term for term in self._terms if isinstance(term, kind)), None)

    def exact_modules(self) -> list[nn.Module]:
        """Parts of terms that compute in float32, whatever the student's type."""
        return [module for term in self._terms for module in term.exact]

    def absorber(self) -> Callable[[str, Tensor], Tensor]:
        """What the terms leave in the student's tensors, one after the other (see `Term.absorber`; a collective)."""
        each = [term.absorber() for term in self._terms]

        def absorb(name: str, tensor: Tensor) -> Tensor:
            for one in each:
                tensor = one(name, tensor)
            return tensor

        return absorb

    def after_update(self, values: Mapping[str, Tensor | float]) -> None:
        """Tell every term the global sums of the step whose update was just made."""
        for term in self._terms:
            term.after_update(values)


def side_of(
    teacher: nn.Module,
    run: Callable[[Tensor, Tensor | None], tuple[Tensor, dict[int, Tensor]]],
    ids: Tensor,
    position_ids: Tensor | None = None,
    image: Tensor | None = None,
    reading: Reading | None = None,
) -> Side:
    """What a teacher makes of rows (B, S) in the student's ids, at the student's places; `run` is that of its taps.

    With an `image` (V,) it reads them by its own `reading`; without one, the student's tokens.
    """
    if image is None:
        return Side(teacher, *run(ids, position_ids))
    reading = reading or same_ids(ids, image, position_ids)
    last, states = run(reading.ids, reading.positions)
    placed = {block: reading.at_places(state) for block, state in states.items()}
    return Side(teacher, reading.at_places(last), placed, match(reading, ids, image))


def kd_step(
    student: nn.Module,
    teacher: nn.Module | Sequence[nn.Module] | None = None,
    objective: Objective = LOGITS_ONLY,
    *,
    origin: np.ndarray | None = None,
    seed: int = 0,
    more: Sequence[Term] = (),
    images: Sequence[Tensor | None] = (),
) -> KDStep:
    """The step of an objective between a student and no, one or several teachers (see `terms_of`), and `more` terms."""
    teachers = () if teacher is None else (teacher,) if isinstance(teacher, nn.Module) else tuple(teacher)
    terms = terms_of(objective, student, teachers, origin=origin, seed=seed, images=images)
    return KDStep(student, teachers, (*terms, *more), images)
