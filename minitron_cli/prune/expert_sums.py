"""The regression of what hidden states lack on the inputs of experts' down projections (see `expert_refit`)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from minitron_cli.errors import MinitronError
from minitron_cli.hf.experts import Part
from minitron_cli.prune.compensate import RIDGE
from minitron_cli.prune.expert_refit import RIDGES, item_bytes


@dataclass(slots=True)
class Sums:
    """G and C of some experts over the tokens so far, of each half of the text; of G its upper blocks alone."""

    experts: Sequence[int]
    grams: tuple[Tensor, Tensor]  # (experts x inner, experts x inner) each
    crosses: tuple[Tensor, Tensor]  # (experts x inner, hidden) each

    @classmethod
    def empty(cls, experts: Sequence[int], inner: int, hidden: int, device: torch.device) -> "Sums":
        width = len(experts) * inner
        dtype = torch.float64 if item_bytes(width) == 8 else torch.float32
        grams, crosses = (
            (torch.zeros(width, n, dtype=dtype, device=device), torch.zeros(width, n, dtype=dtype, device=device))
            for n in (width, hidden)
        )
        return cls(experts, grams, crosses)

    def add(self, parts: Sequence[Part], missing: Tensor, half: int) -> None:
        """Take in a batch: all experts' parts, and what the states after the block lack, (token, hidden) float32.

        Two experts meet in the tokens that chose both, so that no zero is multiplied.
        """
        inputs = [parts[e].inner.float() * parts[e].gate[:, None] for e in self.experts]
        tokens = [parts[e].tokens for e in self.experts]
        gram, cross = self.grams[half], self.crosses[half]
        inner = len(gram) // len(self.experts)
        place = torch.full((len(missing),), -1, device=missing.device)
        for i, (x, own) in enumerate(zip(inputs, tokens)):
            rows = slice(i * inner, (i + 1) * inner)
            cross[rows] += x.T @ missing[own]
            gram[rows, rows] += x.T @ x
            place.fill_(-1)[own] = torch.arange(len(own), device=place.device)
            for j in range(i + 1, len(inputs)):
                at = place[tokens[j]]
                both = at >= 0
                gram[rows, j * inner : (j + 1) * inner] += x[at[both]].T @ inputs[j][both]

    def solve(self, ridge: float | None) -> tuple[Tensor | None, float | None]:
        """What is added to each expert's projection, (expert, hidden, inner), and the ridge that was best.

        None where no token came by, or where no ridge leaves less than there was.
        """
        inner = len(self.grams[0]) // len(self.experts)
        for gram in self.grams:
            for first in range(0, len(gram), inner):
                after = slice(first + inner, len(gram))
                gram[after, first : first + inner] = gram[first : first + inner, after].T
        best = self._best() if ridge is None else ridge
        gram, cross = (one.add_(other) for one, other in (self.grams, self.crosses))
        if np.isinf(best) or not gram.any():
            return None, None if ridge is None else best
        change = regression(gram, cross, best)
        if change is None:
            raise MinitronError(
                f"the Gram matrix of the experts' inputs is not positive definite with a ridge of {best:g}",
                "give a larger --ridge, or more --samples",
            )
        return change.view(len(self.experts), inner, -1).transpose(1, 2), best

    def _best(self) -> float:
        """The ridge with the least error on the second half of what was solved on the first."""
        if not all(gram.any() for gram in self.grams):
            return RIDGE
        errors = []
        for ridge in RIDGES:
            change = None if np.isinf(ridge) else regression(self.grams[0], self.crosses[0], ridge)
            if change is None:
                errors.append(0.0 if np.isinf(ridge) else np.inf)
                continue
            errors.append(float((change * (self.grams[1] @ change - 2 * self.crosses[1])).sum()))
        return RIDGES[int(np.argmin(errors))]


def regression(gram: Tensor, cross: Tensor, ridge: float) -> Tensor | None:
    """(G + ridge mean(diag G) I)^-1 C (n, hidden), None where there is no inverse: gram (n, n), cross (n, hidden)."""
    diagonal = gram.diagonal().clone()
    gram.diagonal().add_(ridge * diagonal.mean())
    factor, failed = torch.linalg.cholesky_ex(gram)
    gram.diagonal().copy_(diagonal)
    return None if int(failed) else torch.cholesky_solve(cross, factor)
