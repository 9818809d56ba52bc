"""The losses of distillation and plain training over a language-model head, without ever holding a batch's logits.

Sums over tokens are already multiplied by the tokens' weights: give weight = mask / global token count and the sum over
micro-batches and ranks is the mean over the global batch, however it was cut.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from minitron_cli.errors import MinitronError
from minitron_cli.training import fused
from minitron_cli.training.cached_logits.layout import Cached
from minitron_cli.training.divergences import Softmax, divergence, softmax
from minitron_cli.training.fused import Block, LossCall, LossSums
from minitron_cli.training.head import Head, logits_into
from minitron_cli.training.objectives import FORWARD_KL, Divergence


@dataclass(frozen=True, slots=True)
class Teacher:
    """One teacher: last hidden states (N, H_t), its head, and its share of the mixed distribution."""

    hidden: Tensor
    head: Head
    share: float = 1.0


def fused_distillation(
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
    chunk_tokens: int | None = None,
    retain_graph: bool = False,
) -> LossSums:
    """kd_weight * sum_i w_i D(teacher_i, student_i) + ce_weight * sum_i w_i CE(target_i, student_i).

    hidden (N, H_s) student states, weights (N,), targets (N,) ids; `vocab` compares only the first `vocab` ids. Several
    teachers are mixed in probability, by their shares. Where no input needs a gradient only the sums are computed.
    With `matched` (N,) bool, D is the cross-entropy with the target where it is False. `retain_graph` keeps the
    gradients so that backward may run more than once (gradcheck).
    """
    vocab = shared_vocab([head, *(t.head for t in teachers)], vocab)
    assert teachers, "no teacher: use fused_cross_entropy"
    assert targets is not None or (ce_weight == 0 and matched is None), "cross-entropy needs targets"

    def teacher_logits(tokens: Tensor, out: Tensor) -> None:
        mix_logits(teachers, tokens, div.temperature, out)

    def pointwise(z_s: Tensor, z_t: Tensor | None, tokens: Tensor, slope: Tensor | None) -> Block:
        assert z_t is not None
        student = softmax(z_s, div.temperature)
        labels = None if targets is None else Labels.of(z_s, student, div.temperature, targets[tokens])
        agree = (z_s.argmax(-1) == z_t.argmax(-1)).to(z_s.dtype) if agreement else None
        kd = divergence(div, student, softmax(z_t, div.temperature), slope)
        known = None if matched is None else matched[tokens]
        return learned(kd, labels, slope, known, kd_weight, ce_weight, div.temperature, agree)

    call = LossCall(
        weights,
        vocab,
        pointwise,
        kd_weight,
        ce_weight,
        teacher=teacher_logits,
        chunk_tokens=chunk_tokens,
        retain_graph=retain_graph,
    )
    return fused.run(hidden, head, call)


def fused_cross_entropy(
    hidden: Tensor,
    head: Head,
    targets: Tensor,
    weights: Tensor,
    *,
    vocab: int | None = None,
    chunk_tokens: int | None = None,
    retain_graph: bool = False,
) -> LossSums:
    """sum_i w_i CE(target_i, student_i), the arm without a teacher: hidden (N, H), targets (N,), weights (N,)."""

    def pointwise(z_s: Tensor, _: Tensor | None, tokens: Tensor, slope: Tensor | None) -> Block:
        labels = Labels.of(z_s, softmax(z_s), 1.0, targets[tokens])
        return Block(None, mix_labels(slope, 0.0, labels, 1.0))

    vocab = shared_vocab([head], vocab)
    call = LossCall(weights, vocab, pointwise, 0.0, 1.0, chunk_tokens=chunk_tokens, retain_graph=retain_graph)
    return fused.run(hidden, head, call)


def fused_cached_distillation(
    hidden: Tensor,
    head: Head,
    cache: Cached,
    weights: Tensor,
    *,
    div: Divergence = FORWARD_KL,
    targets: Tensor | None = None,
    kd_weight: float = 1.0,
    ce_weight: float = 0.0,
    vocab: int | None = None,
    chunk_tokens: int | None = None,
    retain_graph: bool = False,
) -> LossSums:
    """`fused_distillation` from what a teacher said, recorded at `div.temperature`.

    Of its k largest log-probabilities and one bucket for all other ids the divergence is that of the two distributions
    over k + 1 buckets, a lower bound of the full one that is tight when the student spreads the rest as the teacher
    does. Of draws from it divergence and gradient are the full ones in expectation. Where a token is not `matched`, it
    is the cross-entropy with the target.
    """
    assert targets is not None or (ce_weight == 0 and cache.matched is None), "cross-entropy needs targets"

    def pointwise(z_s: Tensor, _: Tensor | None, tokens: Tensor, slope: Tensor | None) -> Block:
        student, rows = softmax(z_s, div.temperature), cache.at(tokens)
        labels = None if targets is None else Labels.of(z_s, student, div.temperature, targets[tokens])
        kd = rows.divergence(div, student, slope)
        return learned(kd, labels, slope, rows.matched, kd_weight, ce_weight, div.temperature)

    vocab = shared_vocab([head], vocab)
    call = LossCall(
        weights, vocab, pointwise, kd_weight, ce_weight, chunk_tokens=chunk_tokens, retain_graph=retain_graph
    )
    return fused.run(hidden, head, call)


class Labels(NamedTuple):
    """Hard labels of a block: ids (r, 1), the student's probabilities at temperature 1 (r, V), cross-entropy (r,)."""

    ids: Tensor
    probs: Tensor
    loss: Tensor

    @staticmethod
    def of(z_s: Tensor, student: Softmax, temperature: float, ids: Tensor) -> "Labels":
        """From logits (r, V), and their softmax at some temperature, which is used again where that is 1."""
        student = student if temperature == 1.0 else softmax(z_s)
        return Labels(ids[:, None], student.probs, -student.log_prob(ids[:, None])[:, 0])


def learned(
    kd: Tensor, labels: Labels | None, slope: Tensor | None, matched: Tensor | None, kd_weight: float, ce_weight: float,
    temperature: float, agree: Tensor | None = None,
) -> Block:  # fmt: skip
    """The divergences (r,) of a block and, mixed into their slope (r, V), the hard labels.

    Of rows that are not `matched` (r,) bool the hard label is learned in place of the teacher.
    """
    if matched is None or labels is None:
        return Block(kd, mix_labels(slope, kd_weight * temperature, labels, ce_weight), agree)
    known = matched.to(kd.dtype)
    if slope is not None:
        slope.mul_(known[:, None])
    ce = mix_labels(slope, kd_weight * temperature, labels, ce_weight + kd_weight * (1 - known))
    return Block(kd * known, ce, None if agree is None else agree * known, labels.loss * (1 - known))


def mix_labels(slope: Tensor | None, factor: float, labels: Labels | None, ce_weight: float | Tensor) -> Tensor | None:
    """slope <- factor * slope + ce_weight * (probs - one-hot); factor 0 overwrites. Returns the cross-entropy (r,).

    `ce_weight` is one number, or one of each row (r,).
    """
    if slope is not None and factor == 0:
        slope.zero_()
    elif slope is not None and factor != 1:
        slope.mul_(factor)
    if labels is not None and slope is not None:
        if isinstance(ce_weight, Tensor):
            slope.addcmul_(labels.probs, ce_weight[:, None]).scatter_add_(1, labels.ids, -ce_weight[:, None])
        elif ce_weight != 0:
            slope.add_(labels.probs, alpha=ce_weight)
            slope.scatter_add_(1, labels.ids, torch.full_like(labels.ids, -ce_weight, dtype=slope.dtype))
    return None if labels is None else labels.loss


def mix_logits(teachers: Sequence[Teacher], tokens: Tensor, temperature: float, out: Tensor) -> None:
    """Write logits (c, V) whose softmax at `temperature` is the mean of the teachers' distributions, by share."""
    if len(teachers) == 1:
        logits_into(_rows(teachers[0].hidden, tokens), teachers[0].head, out)
        return
    total, mixed = sum(t.share for t in teachers), torch.zeros_like(out)
    for teacher in teachers:
        z_t = logits_into(_rows(teacher.hidden, tokens), teacher.head, out)
        mixed.add_(softmax(z_t, temperature).probs, alpha=teacher.share / total)
    torch.log(mixed.clamp_min_(torch.finfo(out.dtype).tiny), out=out).mul_(temperature)


def _rows(hidden: Tensor, tokens: Tensor) -> Tensor:
    return hidden[tokens.to(hidden.device)]


def shared_vocab(heads: Sequence[Head], vocab: int | None) -> int:
    """The number of ids compared; for heads of different length it must be given: only users know what is padding."""
    sizes = sorted({head.vocab for head in heads})
    if vocab is None and len(sizes) > 1:
        raise MinitronError(
            f"the heads have different vocabularies: {' and '.join(map(str, sizes))} rows",
            f"when the tokenizers agree on the first ids, give their number (vocab={sizes[0]} at most)",
        )
    if vocab is not None and not 0 < vocab <= sizes[0]:
        raise MinitronError(
            f"cannot compare {vocab} ids: the smallest head has {sizes[0]} rows", f"give 1 to {sizes[0]}"
        )
    return sizes[0] if vocab is None else vocab
