"""The forward passes: calibration samples through a resident model, statistics on the way, no head."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from minitron_cli.hf.hooks import Site
from minitron_cli.hf.parts import block_name, decoder_of
from minitron_cli.hf.samples import Batch, forward
from minitron_cli.importance.recorder import Recorder, recording


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
