"""A teacher recorded as its k most likely ids: log-probabilities, and the mass of all other ids in one rest bucket.

Renormalising over the top k, as is often done, teaches the student too sharp a distribution; with the rest bucket the
tail's total mass is taught as well.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from minitron_cli.training.divergences import Divergence, Softmax, on_buckets, softmax
from minitron_cli.training.head import Head, logits
from minitron_cli.training.tensor_record import TensorRecord


@dataclass(frozen=True, slots=True)
class TopK(TensorRecord):
    """ids (N, k) distinct per row, log_probs (N, k), tail (N,): log of the probability of every other id.

    `matched` (N,) bool is there where the teacher has a larger vocabulary: it has no prediction for the other rows.
    """

    ids: Tensor
    log_probs: Tensor
    tail: Tensor
    matched: Tensor | None = None

    def buckets(self, dtype: torch.dtype) -> Tensor:
        """(N, k + 1) log-probabilities, the rest last; a tail of mass 0 becomes the smallest number of the dtype."""
        joined = torch.cat([self.log_probs, self.tail[:, None]], dim=1).to(dtype)
        return joined.clamp_min_(_floor(dtype))

    def divergence(self, div: Divergence, student: Softmax, slope: Tensor | None) -> Tensor:
        """`divergences.divergence` over k + 1 buckets: value (r,), and slope (r, V) where there is room for one."""
        probs = student.probs.clone()
        top = probs.gather(1, self.ids)
        rest = probs.scatter_(1, self.ids, 0.0).sum(-1, keepdim=True)
        p = torch.cat([top, rest], dim=1)
        log_p = torch.cat([student.log_prob(self.ids), rest.log()], dim=1)
        log_p.clamp_min_(_floor(p.dtype))
        log_q = self.buckets(p.dtype)
        value, pull = on_buckets(div, p, log_p, log_q.exp(), log_q)
        if slope is not None:
            total = pull.sum(-1, keepdim=True)
            torch.mul(probs, pull[:, -1:] / rest.clamp_min(torch.finfo(p.dtype).tiny) - total, out=slope)
            slope.scatter_(1, self.ids, pull[:, :-1] - p[:, :-1] * total)
        return value * div.temperature**2


@torch.no_grad()
def record(
    hidden: Tensor, head: Head, k: int, temperature: float = 1.0, vocab: int | None = None, chunk: int = 256
) -> TopK:
    """The k most likely ids of every token under a teacher: hidden (N, H) -> TopK of N rows, a few tokens at a time."""
    parts = [_record(logits(rows, head, vocab), k, temperature) for rows in hidden.split(chunk)]
    return TopK(*(torch.cat(column) for column in zip(*parts)))


def _record(z: Tensor, k: int, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    teacher = softmax(z, temperature)
    ids = teacher.u.topk(k, dim=-1).indices
    log_probs = teacher.log_prob(ids)
    # Summing what remains, instead of 1 - sum of the top, keeps the digits of a small tail.
    rest = teacher.probs.scatter_(1, ids, 0.0).sum(-1)
    return ids, log_probs, rest.log()


def _floor(dtype: torch.dtype) -> float:
    return math.log(torch.finfo(dtype).tiny)
