"""Calibration samples for a model: drawn by seed from the data, checked against the model's vocabulary and context."""

from typing import Any

import numpy as np

from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.data.calibration import calibration_rows, padded_rows
from minitron_cli.data.order import mixture_weights
from minitron_cli.data.prepare import token_files
from minitron_cli.data.source import parse_sources
from minitron_cli.data.tokens import require_ids_in
from minitron_cli.hf.samples import Samples
from minitron_cli.importance.options import Options, sample_length


def draw(checkpoint: Checkpoint, options: Options) -> tuple[Samples, dict[str, Any]]:
    """The samples, and what identifies them."""
    seq_len = sample_length(checkpoint.config, options, str(checkpoint.path))
    sources = parse_sources(options.data)
    files = token_files(sources, checkpoint.path, separator=options.separator, text_field=options.text_field)
    weights = mixture_weights(tuple(source.weight for source in sources), files, seq_len)
    if options.padded:
        pad = int(checkpoint.config.get("pad_token_id") or 0)
        rows, mask, identity = padded_rows(
            files, weights, options.samples, seq_len, options.seed, pad, options.allow_fewer
        )
        samples = Samples(rows, spans_of(mask))
    else:
        rows, identity = calibration_rows(files, weights, options.samples, seq_len, options.seed, options.allow_fewer)
        samples = Samples(rows)
    require_ids_in(rows, checkpoint.shape["vocab"], checkpoint.path, "the calibration text")
    return samples, identity


def spans_of(mask: np.ndarray) -> tuple[tuple[int, int], ...]:
    """[begin, end) of the valid tokens of each row: mask (sample, token) bool, True in one run per row."""
    begin, length = mask.argmax(1), mask.sum(1)
    assert length.min() > 0, "a sample without a token"
    return tuple((int(b), int(b + n)) for b, n in zip(begin, length))
