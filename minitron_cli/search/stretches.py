"""Losses by the bytes of the text: models of several vocabularies read a text in different tokens.

Held-out text is cut at the source's windows into stretches of bytes, and what each model's tokens cost is added up over
each stretch: bits per byte of the same text, stretch by stretch, for paired differences.
"""

from collections.abc import Sequence
from math import log

import numpy as np
import torch

from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.data.text_bytes import text_bytes
from minitron_cli.data.tokenizer import load_tokenizer, token_byte_lengths
from minitron_cli.data.tokens import TokenFile
from minitron_cli.evaluate.model import LoadedModel
from minitron_cli.evaluate.perplexity import token_losses


def stretches(source: Checkpoint, files: Sequence[TokenFile], seq_len: int, windows: int) -> list[np.ndarray]:
    """Where the stretches of each file end, in bytes from its start, the first of them at 0: (windows of it + 1,).

    A file's last window is left out where there are others: other tokenizers' windows may not reach its end.
    """
    lengths = token_byte_lengths(load_tokenizer(source.path))
    found = []
    for file in files:
        count = min(max(1, file.num_windows(seq_len) - 1), max(1, windows // len(files)))
        sizes = text_bytes(file, np.arange(count), seq_len, lengths).sum(1)
        found.append(np.concatenate([[0.0], sizes.cumsum()]))
    return found


def bits_per_byte(loaded: LoadedModel, file: TokenFile, ends: np.ndarray, seq_len: int) -> np.ndarray:
    """Bits per byte of each stretch of a file in the model's tokens, without the first token of each window."""
    lengths, count = token_byte_lengths(load_tokenizer(loaded.path)), len(ends) - 1
    batch, at, sums = max(1, 4096 // seq_len), 0.0, np.zeros((2, count))
    for first in range(0, file.num_windows(seq_len), batch):
        if at >= ends[-1]:
            break
        indices = np.arange(first, min(first + batch, file.num_windows(seq_len)))
        sizes = text_bytes(file, indices, seq_len, lengths)
        until = at + sizes.cumsum().reshape(sizes.shape)
        at = float(until[-1, -1])
        (nats,) = token_losses(loaded.model, torch.from_numpy(file.windows(indices, seq_len)).to(loaded.device))
        # A token belongs to the stretch in which it ends; one without bytes, to that of the token before it.
        of = np.searchsorted(ends, until[:, 1:], side="left").clip(1) - 1
        for row, values in enumerate((nats, sizes[:, 1:])):
            sums[row] += np.bincount(of[of < count], weights=values[of < count], minlength=count)
    return sums[0] / sums[1] / log(2)
