"""The same losses written the obvious way, with every logit in memory and autograd for the gradient.

The oracle of the tests; `NaiveLogits` puts it in the place of the fused term in a step.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minitron_cli.training.cached_logits.topk import TopK
from minitron_cli.training.fused import LossSums
from minitron_cli.training.head import Head, compute_dtype, head_of
from minitron_cli.training.losses import Teacher, shared_vocab
from minitron_cli.training.objectives import FORWARD_KL, LOGITS_ONLY, Divergence, Objective
from minitron_cli.training.step import KDStep
from minitron_cli.training.terms import Context, Logits, terms_of


def naive_distillation(
    hidden: Tensor,
    head: Head,
    teachers: Sequence[Teacher],
    weights: Tensor,
    *,
    div: Divergence = FORWARD_KL,
    targets: Tensor | None = None,
    kd_weight: float = 1.0,
    ce_weight: float = 0.0,
    vocab: int | None = None,
    agreement: bool = False,
    matched: Tensor | None = None,
    **_: Any,
) -> LossSums:
    """`fused_distillation` with (N, V) logits; options that only concern memory are accepted and change nothing."""
    vocab = shared_vocab([head, *(t.head for t in teachers)], vocab)
    z_s = _logits(hidden, head, vocab)
    with torch.no_grad():
        z_t = [_logits(t.hidden.to(hidden.device), t.head, vocab) for t in teachers]
        shares = torch.tensor([t.share for t in teachers], dtype=z_s.dtype, device=z_s.device)
        stacked = torch.stack([torch.log_softmax(z / div.temperature, -1) for z in z_t])
        log_q = torch.logsumexp(stacked + (shares / shares.sum()).log()[:, None, None], dim=0)
    log_p = torch.log_softmax(z_s / div.temperature, -1)
    agree = (z_s.argmax(-1) == log_q.argmax(-1)).to(z_s.dtype) if agreement else torch.zeros_like(weights)
    kd = _divergence(div, log_p, log_q)
    if matched is not None:
        agree, kd = agree * matched, torch.where(matched, kd, 0)
    return _sums(kd, z_s, targets, weights, kd_weight, ce_weight, agree, matched)


def naive_cross_entropy(
    hidden: Tensor, head: Head, targets: Tensor, weights: Tensor, *, vocab: int | None = None, **_: Any
) -> LossSums:
    """`fused_cross_entropy` with (N, V) logits."""
    z_s = _logits(hidden, head, shared_vocab([head], vocab))
    nothing = torch.zeros_like(z_s[:, 0])
    return _sums(nothing, z_s, targets, weights, 0.0, 1.0, nothing)


def naive_topk_distillation(
    hidden: Tensor,
    head: Head,
    cache: TopK,
    weights: Tensor,
    *,
    div: Divergence = FORWARD_KL,
    targets: Tensor | None = None,
    kd_weight: float = 1.0,
    ce_weight: float = 0.0,
    vocab: int | None = None,
    **_: Any,
) -> LossSums:
    """`fused_cached_distillation` with (N, V) logits."""
    z_s = _logits(hidden, head, shared_vocab([head], vocab))
    log_p = torch.log_softmax(z_s / div.temperature, -1)
    rest = log_p.scatter(1, cache.ids, float("-inf")).logsumexp(-1, keepdim=True)
    buckets = torch.cat([log_p.gather(1, cache.ids), rest], dim=1)
    values = _divergence(div, buckets, cache.buckets(z_s.dtype))
    return _sums(values, z_s, targets, weights, kd_weight, ce_weight, torch.zeros_like(weights))


def _divergence(div: Divergence, log_p: Tensor, log_q: Tensor) -> Tensor:
    """(N,) divergence of (N, n) log-probabilities, times T^2."""
    p, q = log_p.exp(), log_q.exp()
    if div.kind == "forward_kl":
        value = (q * (log_q - log_p)).sum(-1)
    elif div.kind == "reverse_kl":
        value = (p * (log_p - log_q)).sum(-1)
    elif div.kind == "soft_ce":
        value = -(q * log_p).sum(-1)
    else:
        log_m = torch.log(div.beta * q + (1 - div.beta) * p)
        value = div.beta * (q * (log_q - log_m)).sum(-1) + (1 - div.beta) * (p * (log_p - log_m)).sum(-1)
    return value * div.temperature**2


def _sums(
    kd: Tensor, z_s: Tensor, targets: Tensor | None, weights: Tensor, kd_weight: float, ce_weight: float, agree: Tensor,
    matched: Tensor | None = None,
) -> LossSums:  # fmt: skip
    weights = weights.to(z_s.dtype)
    ce = torch.zeros_like(kd) if targets is None else F.cross_entropy(z_s, targets, reduction="none")
    kd_sum, ce_sum = (kd * weights).sum(), (ce * weights).sum()
    unmatched = torch.zeros_like(ce_sum) if matched is None else (ce * weights)[~matched].sum()
    loss = kd_weight * (kd_sum + unmatched) + ce_weight * ce_sum
    return LossSums(loss, kd_sum.detach(), ce_sum.detach(), (agree * weights).sum(), unmatched.detach())


def _logits(hidden: Tensor, head: Head, vocab: int) -> Tensor:
    """(N, vocab) logits in the compute dtype, every weight widened."""
    dtype, rows = compute_dtype(hidden), slice(None) if head.rows is None else head.rows
    bias = None if head.bias is None else head.bias[rows][:vocab].to(dtype)
    z = F.linear(hidden.to(dtype), head.weight[rows][:vocab].to(hidden.device, dtype), bias) * head.scale
    return z if head.softcap is None else torch.tanh(z / head.softcap) * head.softcap


class NaiveLogits(Logits):
    """The term `Logits` on teachers in memory, by the naive loss."""

    def loss(self, context: Context) -> tuple[Tensor, dict[str, Tensor]]:
        wanted = self.objective
        sums = naive_distillation(
            context.student.last.flatten(0, 1), head_of(context.student.model), self._teachers(context.teachers),
            context.weights.flatten(), div=wanted.divergence, targets=context.targets, kd_weight=wanted.kd_weight,
            ce_weight=wanted.ce_weight, vocab=wanted.vocab,
        )  # fmt: skip
        return sums.loss, {"kd": sums.kd, "ce": sums.ce}


def naive_step(student: nn.Module, teacher: nn.Module, objective: Objective = LOGITS_ONLY, seed: int = 0) -> KDStep:
    """`kd_step` with the naive loss."""
    terms = terms_of(objective, student, [teacher], seed=seed)
    return KDStep(student, [teacher], [NaiveLogits(objective), *terms[1:]])
