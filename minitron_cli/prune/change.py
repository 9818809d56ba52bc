"""What makes new values of a tensor while it is trimmed: compensation, rotation of the residual stream, merging."""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.prune.compensate import Compensation
from minitron_cli.prune.merge import Merging
from minitron_cli.prune.rotate import rotation_of
from minitron_cli.spec.family import Match
from minitron_cli.spec.plan import Plan


class Change(Protocol):
    """Rows of a tensor, or of one expert's part of it, with all their columns -> the rows and columns that stay."""

    @property
    def whole(self) -> bool:
        """Whether all rows have to come in one block."""

    def apply(self, raw: np.ndarray, dtype: str, columns: np.ndarray | None) -> np.ndarray:
        """Stored bits in and out; `columns` are the positions kept along the last dimension (None: all)."""


# (match, expert, positions kept along each dimension, shape) -> its change, or None for plain trimming
ChangeOf = Callable[[Match, int | None, Sequence[np.ndarray | None], Sequence[int]], Change | None]


def changes(checkpoint: Checkpoint, plan: Plan, compensation: Compensation | None) -> ChangeOf:
    """What changes where this plan is carried out, by the Gram matrices of `compensation` if there is one."""
    if plan.merge is not None:
        assert compensation is None
        return Merging(checkpoint, plan).change_of
    if compensation is None:
        assert plan.basis is None, "how readers are refitted to directions follows from Gram matrices"
        return lambda match, expert, keep, shape: None
    rotation = None if plan.basis is None else rotation_of(checkpoint, plan, compensation)

    def change_of(
        match: Match, expert: int | None, keep: Sequence[np.ndarray | None], shape: Sequence[int]
    ) -> Change | None:
        if match.name in checkpoint.beside:  # no text goes through a projector: only its output is turned
            return rotation.change_of(match, None) if rotation else None
        refit = compensation.refit_of(match, expert, keep, shape)
        return (rotation.change_of(match, refit) if rotation else None) or refit

    return change_of
