"""Rows of text for a source, drawn by seed: what losses are compared on, and what experts are refitted to."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.data.calibration import calibration_rows
from minitron_cli.data.order import mixture_weights
from minitron_cli.data.prepare import token_files
from minitron_cli.data.source import parse_sources
from minitron_cli.data.tokens import require_ids_in
from minitron_cli.hf.context import context_length, sequence_length


def text_rows(
    source: Checkpoint, data: Sequence[str], samples: int, seq_len: int, seed: int = 0, *, allow_fewer: bool = False
) -> tuple[np.ndarray, dict[str, Any]]:
    """(sample, token) int64, and what they are (JSON)."""
    sources = parse_sources(tuple(data))
    files = token_files(sources, source.path)
    weights = mixture_weights(tuple(one.weight for one in sources), files, seq_len)
    rows, identity = calibration_rows(files, weights, samples, seq_len, seed, allow_fewer)
    require_ids_in(rows, source.shape["vocab"], source.path, "the calibration text")
    return rows, identity


def row_length(source: Checkpoint, asked: int | None, usual: int) -> int:
    """Tokens per row: as many as asked for, or the source's context up to `usual`."""
    return sequence_length(asked, usual, {str(source.path): context_length(source.config)})
