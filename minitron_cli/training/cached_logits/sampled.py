"""A teacher recorded as draws from its distribution: random sampling knowledge distillation (arXiv 2503.16870).

The top k of a distribution teach nothing of the order of its tail, at any k. Draws do: each id's expected weight is its
probability, so that the expected gradient is that of the full distribution. Here the draws of a token are evenly spaced
quantiles with one random offset (systematic sampling): the same expectation as independent draws, less variance.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from minitron_cli.data.permutation import derive
from minitron_cli.training.divergences import Divergence, Softmax, softmax
from minitron_cli.training.head import Head, logits
from minitron_cli.training.tensor_record import TensorRecord

KINDS = ("forward_kl", "soft_ce")  # the divergences that are linear in the teacher's probabilities


@dataclass(frozen=True, slots=True)
class Sampled(TensorRecord):
    """ids (N, m) int64, weights (N, m) of the draws, entropy (N,) of the teacher in nats.

    An id may occur several times in a row, its weights then add up; unused places have weight 0. `matched` (N,) bool is
    there where the teacher has a larger vocabulary: it has no prediction for the other rows.
    """

    ids: Tensor
    weights: Tensor
    entropy: Tensor
    matched: Tensor | None = None

    def divergence(self, div: Divergence, student: Softmax, slope: Tensor | None) -> Tensor:
        """An unbiased estimate (r,) of `divergences.divergence` over all ids, and of its slope (r, V)."""
        assert div.kind in KINDS
        weights = self.weights.to(student.probs.dtype)
        value = -torch.linalg.vecdot(weights, student.log_prob(self.ids))
        if div.kind == "forward_kl":
            value = value - self.entropy.to(value.dtype)
        if slope is not None:
            torch.mul(student.probs, weights.sum(-1, keepdim=True), out=slope)
            slope.scatter_add_(1, self.ids, -weights)
        return value * div.temperature**2


@torch.no_grad()
def draw(
    hidden: Tensor, head: Head, offsets: Tensor, draws: int, power: float = 1.0, temperature: float = 1.0,
    vocab: int | None = None, chunk: int = 64,
) -> Sampled:  # fmt: skip
    """`draws` ids of every token under a teacher, ascending: hidden (N, H), offsets (N,) in [0, 1) -> N rows.

    Ids are drawn from p^power, normalised, and weighted by what the teacher's p has more or less there.
    """
    parts = [
        _draw(logits(rows, head, vocab), offset, draws, power, temperature)
        for rows, offset in zip(hidden.split(chunk), offsets.to(hidden.device).split(chunk))
    ]
    return Sampled(*(torch.cat(column) for column in zip(*parts)))


def _draw(z: Tensor, offsets: Tensor, draws: int, power: float, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    teacher = softmax(z, temperature)
    proposal = teacher if power == 1.0 else softmax(teacher.u * power)
    # In float64: float32 steps near 1 are as large as the probabilities of rare ids.
    upto = proposal.probs.double().cumsum(-1)
    points = (torch.arange(draws, device=z.device) + offsets.double()[:, None]) / draws * upto[:, -1:]
    ids = torch.searchsorted(upto, points, right=True).clamp_max_(z.shape[1] - 1)
    log_probs = teacher.log_prob(ids)
    weights = (log_probs - log_probs if power == 1.0 else log_probs - proposal.log_prob(ids)).exp() / draws
    return ids, weights, -torch.linalg.vecdot(teacher.probs, teacher.log_probs())


def offsets_of(seed: int, file: int, windows: np.ndarray, predictions: int) -> np.ndarray:
    """The random offsets of some windows of a token file: (window, prediction) float64 in [0, 1).

    A function of seed and place alone: neither batches nor processes nor where a recording was interrupted matter.
    """
    rows = [np.random.Philox(key=derive(seed, file, int(w))).random_raw(predictions) for w in windows]
    return (np.array(rows, np.uint64).reshape(len(windows), predictions) >> np.uint64(11)) * 2.0**-53
