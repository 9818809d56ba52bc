"""Calibration samples as a model reads them: batches of ids, and the forward pass of the decoder over one, no head."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Batch:
    """Samples that go through the model together.

    `ids` (batch, token) int64; `spans` [begin, end) of each row's valid tokens, None when every token is valid;
    `first` is the number of the first sample in the whole calibration set.
    """

    ids: Tensor
    spans: tuple[Span, ...] | None
    first: int

    @property
    def attention_mask(self) -> Tensor | None:
        """(batch, token) of 0 and 1 for padded batches, None for packed ones."""
        if self.spans is None:
            return None
        mask = torch.zeros_like(self.ids)
        for row, (begin, end) in enumerate(self.spans):
            mask[row, begin:end] = 1
        return mask


@dataclass(frozen=True, slots=True)
class Samples:
    """Calibration samples: rows (sample, token) int64; spans [begin, end) of valid tokens, None when all are valid."""

    rows: np.ndarray
    spans: tuple[Span, ...] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def num_tokens(self) -> int:
        """Valid tokens."""
        return self.rows.size if self.spans is None else sum(end - begin for begin, end in self.spans)

    def batches(self, size: int, device: torch.device, start: int = 0, stop: int | None = None) -> Iterator[Batch]:
        """Batches of `size` samples of [start, stop), in order."""
        stop = len(self.rows) if stop is None else stop
        for first in range(start, stop, size):
            last = min(first + size, stop)
            ids = torch.from_numpy(self.rows[first:last]).to(device)
            yield Batch(ids, None if self.spans is None else self.spans[first:last], first)


def forward(decoder: Any, batch: Batch, embedded: torch.Tensor | None = None) -> Any:
    """One pass of the decoder over a batch, given its ids or, in their place, (batch, token, hidden) states.

    Positions count valid tokens, so that padding moves nothing.
    """
    given = {"input_ids": batch.ids} if embedded is None else {"inputs_embeds": embedded}
    mask = batch.attention_mask
    if mask is None:
        return decoder(**given, use_cache=False)
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    return decoder(**given, attention_mask=mask, position_ids=positions, use_cache=False)
