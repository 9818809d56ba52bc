"""The forward passes: calibration samples through a resident model, statistics on the way, no head."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from minitron_cli.hf.hooks import Site
from minitron_cli.hf.parts import block_name, decoder_of
from minitron_cli.importance.recorder import Recorder, recording
from minitron_cli.importance.statistics import Batch, Span


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


def run(
    model: Any,
    sites: Sequence[Site],
    batches: Iterator[Batch],
    recorder: Recorder,
    after: Callable[[Batch], None] = lambda batch: None,
) -> None:
    """Send every batch through the decoder with the recorder attached; `after` is called after each."""
    decoder = decoder_of(model)
    with recording(model, recorder, sites, blocks_of(sites)), torch.inference_mode():
        for batch in batches:
            recorder.start(batch)
            forward(decoder, batch)
            after(batch)


def blocks_of(sites: Sequence[Site]) -> Mapping[int, str]:
    """Layer -> module name of its decoder block."""
    return {site.layer: block_name(site.module, site.layer) for site in sites}
