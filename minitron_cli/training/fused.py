"""The engine of the fused losses: head GEMMs, loss and gradient over chunks of tokens, gradient made in the forward.

For c tokens at a time: teacher and student logits (c, V) in float32 straight from the GEMM, softmax, the closed-form
slope in place of the student's logits, then dH (c, H) and a float32 dW (V, H) accumulated over chunks. Nothing of size
(N, V) exists, nothing is recomputed, the head GEMMs are those of the naive path. Memory: below 16 c V + 4 V H + 4 N H.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from minitron_cli.training.chunks import chunk_size
from minitron_cli.training.head import Head, compute_dtype, logits_into, widened

# The pointwise passes run over blocks of this size per buffer. On a CPU a few of them must fit the cache and stay with
# malloc: fresh pages cost more than the arithmetic. Smaller ones gain nothing and make threads meet more often.
_BLOCK_BYTES = {"cpu": 8 << 20, "gpu": 64 << 20}


class LossSums(NamedTuple):
    """Scalar sums over tokens, weights applied. Only `loss` carries a gradient.

    loss = kd_weight * (kd + unmatched) + ce_weight * ce; `agreement` is the weight of the tokens on which both models'
    top-1 agree, `unmatched` the cross-entropy of those of which no teacher is asked.
    """

    loss: Tensor
    kd: Tensor
    ce: Tensor
    agreement: Tensor
    unmatched: Tensor


class Block(NamedTuple):
    """The loss terms of some rows: kd, ce, agreement, unmatched (r,), None where not asked for."""

    kd: Tensor | None
    ce: Tensor | None
    agreement: Tensor | None = None
    unmatched: Tensor | None = None


# (student logits (r, V), teacher logits (r, V) or None, token numbers (r,), slope) -> Block; fills slope (r, V), the
# derivative by the student's logits, unless it is None. It may be the memory of the student's logits: written last.
Pointwise = Callable[[Tensor, Tensor | None, Tensor, Tensor | None], Block]
# (token numbers (c,), out (c, V)) -> None; writes the teacher's logits
TeacherLogits = Callable[[Tensor, Tensor], None]


@dataclass(frozen=True, slots=True)
class LossCall:
    """Everything about one call but the student's states and head: weights (N,), the first `vocab` ids are compared."""

    weights: Tensor
    vocab: int
    pointwise: Pointwise
    kd_weight: float
    ce_weight: float
    teacher: TeacherLogits | None = None
    chunk_tokens: int | None = None
    retain_graph: bool = False


def run(hidden: Tensor, head: Head, call: LossCall) -> LossSums:
    """The loss of student states (N, H) under `head`; differentiable by what of hidden, weight, bias asks for it."""
    with torch.autocast(hidden.device.type, enabled=False):
        return LossSums(*_Fused.apply(hidden, head.weight, head.bias, head, call, torch.is_grad_enabled()))


class _Fused(torch.autograd.Function):
    """Carries the gradients made in the forward to the backward, which multiplies them by the upstream gradient."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, head: Head, call: LossCall, grad_enabled: bool
    ) -> tuple[Tensor, ...]:
        head = replace(head, weight=weight, bias=bias)
        wanted = [bool(grad_enabled and needed) for needed in ctx.needs_input_grad[:3]]
        grads = _Gradients(hidden, head, call.vocab, wanted)
        sums = _accumulate(hidden, head, call, grads)
        ctx.grads, ctx.retain = grads.finished(weight.dtype), call.retain_graph
        ctx.mark_non_differentiable(*sums[1:])
        return sums

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.grads is None:
            raise RuntimeError(
                "the gradients of a fused loss were consumed by an earlier backward: pass retain_graph=True"
            )
        grads = ctx.grads
        if ctx.retain:
            return (*(None if g is None else g * upstream.to(g.dtype) for g in grads), None, None, None)
        # Scaled in place and let go, so that .grad can take the very tensor: no second (V, H) buffer.
        ctx.grads = None
        return (*(None if g is None else g.mul_(upstream) for g in grads), None, None, None)


class _Gradients:
    """Accumulators: dH (N, H) in the states' dtype, dW (V, H), db (V,) in the compute dtype; None where not wanted."""

    def __init__(self, hidden: Tensor, head: Head, vocab: int, wanted: list[bool]) -> None:
        self.dtype = compute_dtype(hidden)
        self.head, self.vocab = head, vocab
        self.hidden = torch.zeros_like(hidden) if wanted[0] else None
        # Rows beyond `vocab` are shared by no id of the other model: their gradient is 0.
        self.weight = torch.zeros_like(head.weight, dtype=self.dtype) if wanted[1] else None
        self.bias = torch.zeros_like(head.bias, dtype=self.dtype) if wanted[2] and head.bias is not None else None

    @property
    def wanted(self) -> bool:
        return not (self.hidden is None and self.weight is None and self.bias is None)

    def add(self, rows: Tensor | slice, states: Tensor, slope: Tensor, weights: Tensor) -> None:
        """One chunk: states (c, H), slope (c, V) of a token's loss by its raw logits, weights (c,) of the tokens.

        The weights multiply (c, H) instead of (c, V): less work, and slopes of ordinary size where GEMMs run in bf16.
        """
        scaled = weights[:, None] * self.head.scale
        weight = self.head.weight[: self.vocab]
        narrow = slope.to(weight.dtype) if slope.is_cuda else slope
        if self.hidden is not None:
            self.hidden[rows] = (_times_weight(narrow, weight) * scaled).to(self.hidden.dtype)
        if self.weight is not None:
            _add_outer(self.weight[: self.vocab], narrow, states * scaled)
        if self.bias is not None:
            self.bias[: self.vocab] += (scaled[:, 0, None] * slope).sum(0)

    def finished(self, weight_dtype: torch.dtype) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """(dH, dW, db): the head's gradients rounded once, to the dtype of the parameter."""
        weight, bias = (None if g is None else g.to(weight_dtype) for g in (self.weight, self.bias))
        return self.hidden, weight, bias


def _times_weight(slope: Tensor, weight: Tensor) -> Tensor:
    """slope (c, V) @ weight (V, H) -> (c, H)."""
    if slope.dtype == weight.dtype:
        return slope @ weight
    out = slope.new_zeros(slope.shape[0], weight.shape[1])
    for rows, block in widened(weight, slope.dtype):
        out.addmm_(slope[:, rows], block)
    return out


def _add_outer(total: Tensor, slope: Tensor, states: Tensor) -> None:
    """total (V, H) += slope (c, V)^T @ states (c, H), in the dtype of `total`."""
    if slope.dtype == total.dtype:
        total.addmm_(slope.t(), states.to(total.dtype))
    else:
        torch.addmm(total, slope.t(), states.to(slope.dtype), out_dtype=total.dtype, out=total)


def _accumulate(hidden: Tensor, head: Head, call: LossCall, grads: _Gradients) -> tuple[Tensor, ...]:
    """Run every chunk; returns the fields of LossSums and fills `grads`."""
    dtype = compute_dtype(hidden)
    # Masked tokens are dropped before the GEMMs: neither computed nor able to put a NaN into the sums.
    tokens = call.weights.nonzero()[:, 0]
    all_kept = len(tokens) == len(call.weights)
    size = chunk_size(len(tokens), call.vocab, hidden.device.type, call.chunk_tokens)
    student = torch.empty(size, call.vocab, dtype=dtype, device=hidden.device)
    teacher = torch.empty_like(student) if call.teacher else None
    sums = torch.zeros(4, dtype=dtype, device=hidden.device)
    for start in range(0, len(tokens), max(size, 1)):
        chunk = tokens[start : start + size]
        rows = slice(start, start + len(chunk)) if all_kept else chunk
        states, weights = hidden[rows], call.weights[rows].to(dtype)
        z_s = logits_into(states, head, student[: len(chunk)])
        z_t = None
        if call.teacher is not None and teacher is not None:
            call.teacher(chunk, z_t := teacher[: len(chunk)])
        for part in _blocks(len(chunk), call.vocab, dtype, hidden.device.type):
            z = z_s[part]
            slope = None if not grads.wanted else z if head.softcap is None else torch.empty_like(z)
            block = call.pointwise(z, None if z_t is None else z_t[part], chunk[part], slope)
            for position, values in enumerate(block):
                if values is not None:
                    sums[position] += torch.dot(values, weights[part])
            if slope is not None and head.softcap is not None:
                # By the scaled logits s: d cap tanh(s / cap) / ds = 1 - (z / cap)^2
                z.div_(head.softcap).square_().neg_().add_(1.0).mul_(slope)
        if grads.wanted:
            grads.add(rows, states, z_s, weights)
    kd, ce, agreement, unmatched = sums.unbind()
    loss = call.kd_weight * (kd + unmatched) + call.ce_weight * ce
    return loss, kd.clone(), ce.clone(), agreement.clone(), unmatched.clone()


def _blocks(num_rows: int, vocab: int, dtype: torch.dtype, device_type: str) -> Iterator[slice]:
    size = max(1, _BLOCK_BYTES["cpu" if device_type == "cpu" else "gpu"] // (vocab * dtype.itemsize))
    for start in range(0, num_rows, size):
        yield slice(start, min(start + size, num_rows))
