"""Divergences between a teacher's and a student's next-token distribution, with their closed-form slopes.

Notation: q teacher, p student, u = logits / T, r rows of a block. A divergence returns its value per row (r,) and fills
its slope by the student's u (r, V) where there is room for one. Blocks are a few megabytes, so that their dozen passes
stay in the cache.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from minitron_cli.training.objectives import Divergence


class Softmax(NamedTuple):
    """One distribution: u (r, V), probabilities (r, V), the largest u (r,) and the log-probability there (r,).

    log p = (u - top) + log_top. Kept apart, because top - log_top, the log-partition, would round at the size of the
    logits, and the difference of two of them is what a small divergence is made of.
    """

    u: Tensor
    probs: Tensor
    top: Tensor
    log_top: Tensor

    def log_probs(self) -> Tensor:
        """(r, V) log-probabilities."""
        return (self.u - self.top[:, None]).add_(self.log_top[:, None])

    def log_prob(self, ids: Tensor) -> Tensor:
        """(r, k) log-probabilities of ids (r, k)."""
        return (self.u.gather(1, ids) - self.top[:, None]) + self.log_top[:, None]


def softmax(logits: Tensor, temperature: float = 1.0) -> Softmax:
    """One pass of exponentials; the log is taken at the largest entry only, where it is well conditioned."""
    u = logits if temperature == 1.0 else logits / temperature
    probs = torch.softmax(u, dim=-1)
    return Softmax(u, probs, u.amax(-1), probs.amax(-1).log())


def divergence(div: Divergence, student: Softmax, teacher: Softmax, slope: Tensor | None) -> Tensor:
    """Value (r,) times T^2 over all ids; fills slope (r, V) by u, to which the caller applies T^2 du/dz = T.

    `slope` may be the memory of the student's u, which is then lost: it is written last.
    """
    if div.kind == "forward_kl":
        value = _forward_kl(student, teacher)
        if slope is not None:
            torch.sub(student.probs, teacher.probs, out=slope)
    else:
        value, pull = on_buckets(div, student.probs, student.log_probs(), teacher.probs, teacher.log_probs())
        if slope is not None:
            torch.addcmul(pull, student.probs, pull.sum(-1, keepdim=True), value=-1, out=slope)
    return value * div.temperature**2


def _forward_kl(student: Softmax, teacher: Softmax) -> Tensor:
    """sum q (log q - log p), exactly 0 when both are the same numbers: the u's are subtracted first."""
    partition = (teacher.top - student.top) - (teacher.log_top - student.log_top)
    log_ratio = torch.sub(teacher.u, student.u).sub_(partition[:, None])
    return torch.linalg.vecdot(teacher.probs, log_ratio)


def on_buckets(div: Divergence, p: Tensor, log_p: Tensor, q: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """Value (r,), without T^2, and pull (r, n), p times the derivative of the value by p, of any n buckets of ids.

    The slope by a logit of bucket b is pull_b - p_b sum(pull); where a bucket holds several ids, each takes the share
    of its probability. A constant added to the derivative drops out and is left away.
    """
    if div.kind == "forward_kl":
        return torch.linalg.vecdot(q, log_q - log_p), -q
    if div.kind == "soft_ce":
        return -torch.linalg.vecdot(q, log_p), -q
    if div.kind == "reverse_kl":
        pull = (log_p - log_q).mul_(p)
        return pull.sum(-1), pull
    mix = torch.lerp(p, q, div.beta).clamp_min_(torch.finfo(p.dtype).tiny)
    pull = torch.special.xlogy(p, p / mix).mul_(1 - div.beta)
    return torch.special.xlogy(q, q / mix).sum(-1) * div.beta + pull.sum(-1), pull
