"""The fused loss never makes a tensor that grows with tokens x vocabulary; counted by allocation, not timed."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from minitron_cli.training.chunks import chunk_size
from minitron_cli.training.head import Head
from minitron_cli.training.losses import Teacher, fused_cross_entropy, fused_distillation
from minitron_cli.training.objectives import KINDS, Divergence
from tests.training.naive import naive_distillation

VOCAB, HIDDEN = 3001, 16


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation returned."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return out


def largest(function: Any, tokens: int, **options: Any) -> int:
    """Elements of the largest tensor in a forward and backward of the loss."""
    hidden = torch.randn(tokens, HIDDEN, requires_grad=True)
    head = Head(torch.randn(VOCAB, HIDDEN, requires_grad=True))
    targets, weights = torch.zeros(tokens, dtype=torch.int64), torch.full((tokens,), 1 / tokens)
    teachers = [Teacher(torch.randn(tokens, HIDDEN), Head(torch.randn(VOCAB, HIDDEN))) for _ in range(2)]
    with Largest() as seen:
        if function is fused_cross_entropy:
            function(hidden, head, targets, weights, **options).loss.backward()
        else:
            function(hidden, head, teachers, weights, targets=targets, ce_weight=0.1, **options).loss.backward()
    return seen.numel


@pytest.mark.parametrize("kind", KINDS)
def test_distillation_grows_with_the_chunk_not_with_the_tokens(kind: str) -> None:
    div = Divergence(kind, temperature=2.0)
    for tokens, chunk in ((64, 32), (256, 32), (256, 64)):
        assert largest(fused_distillation, tokens, div=div, chunk_tokens=chunk) == max(chunk, HIDDEN) * VOCAB
    # Negative control: the measure sees what the naive loss makes.
    assert largest(naive_distillation, 256, div=div) >= 256 * VOCAB


def test_cross_entropy_grows_with_the_chunk_not_with_the_tokens() -> None:
    assert largest(fused_cross_entropy, 256, chunk_tokens=32) == 32 * VOCAB


def test_chunks_fit_their_budget_and_are_even() -> None:
    # 16 c V bytes below 128 MiB with an ordinary vocabulary; never fewer tokens than the GEMMs need.
    assert 16 * chunk_size(100_000, 32_000, "cpu", None) * 32_000 <= 128 << 20
    assert chunk_size(100_000, 256_000, "cpu", None) == 256
    assert chunk_size(300, 256_000, "cpu", None) == 150
    assert chunk_size(10, 256_000, "cpu", None) == 10
    assert chunk_size(10, 256_000, "cpu", 4) == 4
    assert chunk_size(0, 256_000, "cpu", None) == 0
