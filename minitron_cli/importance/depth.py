"""What the model loses without a layer, or without a contiguous block of them, measured at its logits.

A candidate that drops layers [i, i + n) shares everything before layer i with the full model, so it starts from the
hidden states that the full pass left there and runs only layers i + n to the end: on average less than half a pass
per candidate, L - n + 1 of them per block size.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minitron_cli.errors import MinitronError
from minitron_cli.hf.hooks import block_inputs, replaced
from minitron_cli.hf.parts import decoder_of, vocabulary_of
from minitron_cli.hf.samples import Batch, forward
from minitron_cli.importance.bypass import answers_with_tuple, chunk_tokens, logits_of, without

Total = Callable[[np.ndarray], np.ndarray]
Tick = Callable[[Batch, int], None]  # a candidate of a batch is done; its number


@dataclass(frozen=True, slots=True)
class Sweep:
    """Candidates and what dropping each does, in nats per token (mse: squared logit distance per logit).

    `values[k]` belongs to `candidates[k]`, the layers that it drops; `full` is the same measure with nothing dropped
    (0 for the distances).
    """

    metric: str
    candidates: tuple[tuple[int, ...], ...]
    values: np.ndarray
    full: float
    tokens: int

    @property
    def best(self) -> int:
        """The candidate that hurts least; the earlier one of equals."""
        return int(np.argmin(self.values))


def contiguous(layers: Sequence[int], size: int) -> tuple[tuple[int, ...], ...]:
    """Every run of `size` neighbours among the layers that are left."""
    if not 1 <= size < len(layers):
        raise MinitronError(
            f"a block of {size} layers cannot be dropped from {len(layers)}", f"use 1 to {len(layers) - 1}"
        )
    return tuple(tuple(layers[i : i + size]) for i in range(len(layers) - size + 1))


def cost(candidates: Sequence[Sequence[int]], layers: Sequence[int]) -> float:
    """Passes over the layers that a sweep takes, the full one included."""
    runs = len(layers) + sum(sum(layer > candidate[-1] for layer in layers) for candidate in candidates)
    return runs / len(layers)


def sweep(
    model: Any,
    blocks: Sequence[nn.Module],
    batches: Iterator[Batch],
    candidates: Sequence[tuple[int, ...]],
    metric: str = "loss",
    dropped: Sequence[int] = (),
    tick: Tick = lambda batch, candidate: None,
    total: Total = lambda sums: sums,
) -> Sweep:
    """Measure every candidate on every batch; `dropped` layers are left out throughout (greedy search).

    `total` adds up the sums of several processes that each have some of the batches.
    """
    decoder = decoder_of(model)
    as_tuple: bool | None = None
    sums = np.zeros(len(candidates) + 1)
    tokens = 0
    with torch.inference_mode():
        for batch in batches:
            if as_tuple is None:
                as_tuple = answers_with_tuple(model, blocks, batch.ids.device)
            with block_inputs(blocks) as inputs, replaced(without(blocks, dropped, None, as_tuple)):
                full = forward(decoder, batch).last_hidden_state
            targets = _targets(batch)
            tokens += int((targets >= 0).sum())
            sums[0] += _measure(model, full, full, targets, metric)
            for number, candidate in enumerate(candidates):
                start = (candidate[-1], inputs[candidate[0]])
                with replaced(without(blocks, dropped, start, as_tuple)):
                    final = forward(decoder, batch).last_hidden_state
                sums[number + 1] += _measure(model, final, full, targets, metric)
                tick(batch, number)
    totals = total(np.array([*sums, tokens]))
    mean = totals[:-1] / totals[-1]
    return Sweep(metric, tuple(candidates), mean[1:], float(mean[0]), int(totals[-1]))


def _targets(batch: Batch) -> Tensor:
    """The next token of each position, -1 where there is none to predict: (batch, token) int64."""
    targets = torch.full_like(batch.ids, -1)
    for row, (begin, end) in enumerate(batch.spans or [(0, batch.ids.shape[1])] * len(batch.ids)):
        targets[row, begin : end - 1] = batch.ids[row, begin + 1 : end]
    return targets


def _measure(model: Any, final: Tensor, full: Tensor, targets: Tensor, metric: str) -> float:
    """Sum of the metric over predicted tokens: `final` of a candidate and `full`, both (batch, token, hidden)."""
    if metric != "loss" and final is full:
        return 0.0
    wanted = targets >= 0
    final, full, targets = final[wanted], full[wanted], targets[wanted]
    total = torch.zeros((), dtype=torch.float64, device=final.device)
    size = chunk_tokens(vocabulary_of(model))
    for a in range(0, len(final), size):
        logits = logits_of(model, final[a : a + size])
        if metric == "loss":
            total += F.cross_entropy(logits, targets[a : a + size].to(logits.device), reduction="sum").double()
            continue
        reference = logits_of(model, full[a : a + size])
        if metric == "mse":
            total += (logits - reference).square().mean(-1).sum().double()
        else:  # KL(full || candidate), as distillation will see it
            total += F.kl_div(
                logits.log_softmax(-1), reference.log_softmax(-1), reduction="sum", log_target=True
            ).double()
    return float(total)


def greedy(
    model: Any,
    blocks: Sequence[nn.Module],
    batches: Callable[[], Iterator[Batch]],
    steps: int,
    metric: str = "loss",
    tick: Tick = lambda batch, candidate: None,
    total: Total = lambda sums: sums,
) -> list[Sweep]:
    """Drop the single layer that hurts least, measure again without it, and so on: one sweep per step."""
    left, sweeps = list(range(len(blocks))), []
    for _ in range(steps):
        gone = [layer for layer in range(len(blocks)) if layer not in left]
        sweeps.append(sweep(model, blocks, batches(), contiguous(left, 1), metric, gone, tick, total))
        left.remove(sweeps[-1].candidates[sweeps[-1].best][0])
    return sweeps
