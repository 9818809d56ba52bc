"""Per-sample statistics of activations, and the running sums over samples from which every aggregation follows.

A sample's statistic is taken over its own valid tokens only, and samples are combined only in the sums, so that a score
depends neither on the batch size nor on padding.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from minitron_cli.hf.samples import Batch, Span
from minitron_cli.importance.sums import HALVES


def sequence_statistics(x: Tensor, spans: Sequence[Span] | None) -> Tensor:
    """Mean of |x|, l2 and variance over each sample's tokens: x (batch, token, channel) -> (batch, 3, channel) float64.

    The aggregations of Minitron, arXiv 2407.14679, section 2.2. Values are upcast to float32 before they are squared
    or summed; variance comes from the sums of x and x^2, combined in float64.
    """
    if spans is None and x.is_cuda:
        return _statistics(x)
    # One sample at a time: a sample's temporaries stay in the cache, and a span is a view, not a copy.
    rows = x if spans is None else [x[row, begin:end] for row, (begin, end) in enumerate(spans)]
    return torch.stack([_statistics(row) for row in rows])


def _statistics(x: Tensor) -> Tensor:
    """x (..., token, channel) -> (..., 3, channel) float64."""
    tokens = x.shape[-2]
    absolute, square, plain = (s.double() for s in _sums(x))
    mean = plain / tokens
    variance = (square / tokens - mean * mean).clamp_min_(0.0)
    return torch.stack([absolute / tokens, square.sqrt(), variance], dim=-2)


def _sums(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sums of |x|, x^2 and x over tokens in float32: x (..., token, channel) -> three (..., channel)."""
    if x.is_cuda:  # norms upcast while they reduce, so that nothing of the activation's size is written
        absolute = torch.linalg.vector_norm(x, 1, dim=-2, dtype=torch.float32)
        square = torch.linalg.vector_norm(x, 2, dim=-2, dtype=torch.float32).double().square()
        return absolute, square, x.sum(-2, dtype=torch.float32)
    x = x.float()
    return x.abs().sum(-2), (x * x).sum(-2), x.sum(-2)


def block_change(before: Tensor, after: Tensor, spans: Sequence[Span] | None) -> tuple[Tensor, Tensor]:
    """What a block does to each sample: before and after (batch, token, hidden) -> two (batch,) float64.

    Block influence, 1 - mean over valid tokens of cos(x_in, x_out) (ShortGPT; Minitron, arXiv 2407.14679, section 2.2),
    and the mean over valid tokens of |x_out| / |x_in|, by which Ministral 3 ranks its layers.
    """
    influence, ratio = [], []
    for row in range(len(before)):
        begin, end = spans[row] if spans is not None else (0, before.shape[1])
        x, y = before[row, begin:end].float(), after[row, begin:end].float()
        tiny = torch.finfo(torch.float32).tiny
        norm_x, norm_y = torch.linalg.vector_norm(x, dim=-1), torch.linalg.vector_norm(y, dim=-1)
        cosine = (x * y).sum(-1) / (norm_x * norm_y).clamp_min(tiny)
        influence.append(1.0 - cosine.double().mean())
        ratio.append((norm_y / norm_x.clamp_min(tiny)).double().mean())
    return torch.stack(influence), torch.stack(ratio)


def half_of(batch: Batch, half: int) -> slice:
    """The rows of a batch whose sample number is even (0) or odd (1)."""
    return slice((half - batch.first) % HALVES, None, HALVES)


def accumulate(sums: Tensor, statistics: Tensor, batch: Batch) -> None:
    """Add samples to running sums in place: statistics (batch, ...) into sums (half, moment, ...), both float64."""
    for half in range(HALVES):
        rows = statistics[half_of(batch, half)]
        sums[half, 0] += rows.sum(0)
        sums[half, 1] += rows.square().sum(0)
