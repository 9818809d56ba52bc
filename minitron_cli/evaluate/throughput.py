"""How fast a model reads: tokens per second of plain forward passes. `minitron bench` measures the rest."""

from __future__ import annotations

import torch

from minitron_cli.evaluate.model import LoadedModel, max_context
from minitron_cli.hf.devices import clock
from minitron_cli.hf.parts import vocabulary_of

_SEQ_LEN = 128
_REPEATS = 7
_SECONDS = 5.0


@torch.inference_mode()
def forward_rate(loaded: LoadedModel) -> float:
    """Tokens per second of the fastest of a few passes: other work on the machine only slows a pass down."""
    length = min(_SEQ_LEN, max_context(loaded) or _SEQ_LEN)
    rows = max(1, _tokens(loaded) // length)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(vocabulary_of(loaded.model), (rows, length), generator=generator).to(loaded.device)
    fastest, spent = float("inf"), 0.0
    for turn in range(_REPEATS + 1):
        start = clock(loaded.device)
        loaded.model(input_ids=ids, use_cache=False)
        took = clock(loaded.device) - start
        spent += took
        if turn or spent > _SECONDS:  # the first pass warms up, unless there is time for one only
            fastest = min(fastest, took)
        if spent > _SECONDS:
            break
    return ids.numel() / fastest


def _tokens(loaded: LoadedModel) -> int:
    """Tokens of a pass: many, to hide the cost of launching, but a pass on a CPU must end."""
    if loaded.device.type != "cpu" or loaded.num_parameters < 20_000_000:
        return 4096
    return 1024 if loaded.num_parameters < 1_000_000_000 else 128
