"""How fast a model reads: tokens per second of plain forward passes."""

from __future__ import annotations

import statistics
import time

import torch
from torch import nn

_SECONDS = 0.5


@torch.inference_mode()
def forward_rate(model: nn.Module, *, batch_size: int = 8, seq_len: int = 128, repeats: int = 5) -> float:
    """Median tokens per second of forward passes over (batch_size, seq_len) ids, after a warm-up pass."""
    device = next(model.parameters()).device
    config = model.config
    vocab = int(config.get_text_config().vocab_size)  # type: ignore[operator, union-attr]
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(vocab, (batch_size, seq_len), generator=generator).to(device)
    rates: list[float] = []
    spent = 0.0
    for turn in range(50):
        _wait(device)
        start = time.perf_counter()
        model(input_ids=ids, use_cache=False)
        _wait(device)
        took = time.perf_counter() - start
        if turn:  # the first pass warms up
            rates.append(ids.numel() / took)
            spent += took
        if len(rates) >= repeats and spent > _SECONDS:
            break
    return statistics.median(rates)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
