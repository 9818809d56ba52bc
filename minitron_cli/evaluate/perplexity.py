"""Language-model loss on token files: nats per token, bits per byte, per domain; and closeness to a reference model.

Windows of `seq_len` tokens are cut end to end, as training reads them; in each the first token is given and the others
are predicted. Everything is weighted by token, never by window, document or domain. The bytes of a document are shared
out over its own tokens, so that bits per byte compares models whose tokenizers differ: exactly, given the bytes that
each id of the vocabulary spells, else in equal shares.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from minitron_cli.data.text_bytes import text_bytes
from minitron_cli.data.tokens import TokenFile
from minitron_cli.errors import MinitronError
from minitron_cli.hf import context
from minitron_cli.hf.parts import vocabulary_of

# Sums are kept for so many runs of neighbouring windows at the most: what an interval on a difference is made of.
MOST_BLOCKS = 256
# Logits held at a time, in elements (tokens x vocabulary) per model: 64 Mi float32 values are 256 MiB.
_LOGIT_BUDGET = 1 << 26
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Loss:
    """Sums over the predicted tokens of one domain; the means derive from them.

    `blocks` (2, block) are the tokens and nats of successive runs of windows, for paired comparisons.
    """

    tokens: int
    nats: float
    bytes: float
    blocks: np.ndarray
    kl: float | None = None
    agreements: int | None = None

    @property
    def nats_per_token(self) -> float:
        return self.nats / self.tokens

    def to_json(self) -> dict[str, Any]:
        """What a table shows; `kl` in nats per token, `top1_agreement` a share, both only against a reference."""
        shown = {
            "tokens": self.tokens,
            "nats_per_token": self.nats_per_token,
            "perplexity": math.exp(min(self.nats_per_token, 700.0)),
            "bits_per_byte": self.nats / math.log(2) / self.bytes if self.bytes else None,
            "blocks": self.blocks.tolist(),
        }
        if self.kl is not None and self.agreements is not None:
            shown |= {"kl": self.kl / self.tokens, "top1_agreement": self.agreements / self.tokens}
        return shown


def add(losses: Sequence[Loss]) -> Loss:
    """The sums of several domains of the same windows together."""
    return _together(losses, np.sum([loss.blocks for loss in losses], axis=0))


def join(losses: Sequence[Loss]) -> Loss:
    """The sums of one domain over several files, whose blocks follow each other."""
    return _together(losses, np.concatenate([loss.blocks for loss in losses], axis=1))


def _together(losses: Sequence[Loss], blocks: np.ndarray) -> Loss:
    against = all(loss.kl is not None for loss in losses if loss.tokens)
    return Loss(
        sum(loss.tokens for loss in losses),
        math.fsum(loss.nats for loss in losses),
        math.fsum(loss.bytes for loss in losses),
        blocks,
        math.fsum(loss.kl or 0.0 for loss in losses) if against else None,
        sum(loss.agreements or 0 for loss in losses) if against else None,
    )


def perplexity(
    model: nn.Module,
    file: TokenFile,
    *,
    seq_len: int,
    max_windows: int | None = None,
    batch_size: int | None = None,
    reference: nn.Module | None = None,
    byte_lengths: np.ndarray | None = None,
    progress: Progress = lambda done, total: None,
) -> dict[str, Loss]:
    """Loss of `model` on `file` by domain, absent ones at 0 tokens.

    With `max_windows`, only that many windows are read that begin in each domain, the first ones.

    With `reference`, a model of the same vocabulary on the same device, also KL(reference || model) and how often
    both prefer the same next token. `byte_lengths` (vocab,) is `data.tokenizer.token_byte_lengths` of the file's
    tokenizer.
    """
    chosen = _choose(file, seq_len, max_windows)
    windows = len(chosen)
    rows = context.batch_size(batch_size, seq_len, "cpu")
    domains = file.header.domains
    sums = np.zeros((5, len(domains)))  # tokens, nats, bytes, kl, agreements
    num_blocks = min(windows, MOST_BLOCKS)
    blocks = np.zeros((2, num_blocks * len(domains)))  # tokens, nats
    device = next(model.parameters()).device
    for first in range(0, windows, rows):
        numbers = np.arange(first, min(first + rows, windows))
        indices = chosen[numbers]
        nats, *against = token_losses(model, torch.from_numpy(file.windows(indices, seq_len)).to(device), reference)
        num_bytes = text_bytes(file, indices, seq_len, byte_lengths)[:, 1:]
        of = file.domain_numbers(indices, seq_len)[:, 1:].ravel()
        for i, values in enumerate((np.ones(of.size), nats, num_bytes, *against)):
            sums[i] += np.bincount(of, weights=values.astype(np.float64).ravel(), minlength=len(domains))
        place = np.repeat(numbers * num_blocks // windows, seq_len - 1) * len(domains) + of
        blocks[0] += np.bincount(place, minlength=blocks.shape[1])
        blocks[1] += np.bincount(place, weights=nats.ravel(), minlength=blocks.shape[1])
        progress(int(numbers[-1]) + 1, windows)
    parts = blocks.reshape(2, num_blocks, len(domains))
    return {domain: _loss(sums[:, i], parts[..., i], reference is not None) for i, domain in enumerate(domains)}


def _loss(sums: np.ndarray, blocks: np.ndarray, against: bool) -> Loss:
    tokens, nats, num_bytes, kl, agreements = sums.tolist()
    return Loss(int(tokens), nats, num_bytes, blocks, kl if against else None, int(agreements) if against else None)


@torch.inference_mode()
def token_losses(model: nn.Module, ids: Tensor, reference: nn.Module | None = None) -> tuple[np.ndarray, ...]:
    """ids (row, seq) -> nats (row, seq - 1); with `reference` also KL and agreement (0 or 1), of the same shape.

    Logits exist for a few rows at a time, in the model's own type, and in float32 for a few positions of them.
    """
    budget = _LOGIT_BUDGET // vocabulary_of(model)
    rows: list[tuple[np.ndarray, ...]] = []
    for chunk in ids.split(max(1, budget // ids.shape[1])):
        tensors = [_logits(model, chunk), chunk[:, 1:]]
        if reference is not None:
            tensors.append(_logits(reference, chunk))
        step = max(1, budget // chunk.shape[0])
        parts = [_compare(*part) for part in zip(*(tensor.split(step, dim=1) for tensor in tensors))]
        rows.append(tuple(np.concatenate(columns, axis=1) for columns in zip(*parts)))
    return tuple(np.concatenate(columns) for columns in zip(*rows))


def _compare(logits: Tensor, targets: Tensor, other: Tensor | None = None) -> tuple[np.ndarray, ...]:
    """logits (row, token, vocab), targets (row, token) -> nats, and KL and agreement with the logits `other`."""
    log_probs = logits.float().log_softmax(-1)
    found = [-log_probs.gather(-1, targets[..., None])[..., 0]]
    if other is not None:
        width = min(other.shape[-1], logits.shape[-1])
        if width < logits.shape[-1]:  # a padded vocabulary: compare over the common ids
            log_probs = logits[..., :width].float().log_softmax(-1)
        reference = other[..., :width].float().log_softmax(-1)
        found.append((reference.exp() * (reference - log_probs)).sum(-1))
        found.append((reference.argmax(-1) == log_probs.argmax(-1)).float())
    return tuple(value.double().cpu().numpy() for value in found)


def _logits(model: nn.Module, ids: Tensor) -> Tensor:
    """(row, seq) -> logits of every token but the last, which has no successor here: (row, seq - 1, vocab)."""
    return model(input_ids=ids, use_cache=False).logits[:, :-1]


def _choose(file: TokenFile, seq_len: int, of_each_domain: int | None) -> np.ndarray:
    """Numbers of the windows to read, ascending: int64 (n,)."""
    windows = file.num_windows(seq_len)
    if not windows:
        raise MinitronError(
            f"{file.name} holds {file.header.num_tokens:,} tokens, less than one window of {seq_len}",
            "give more text, or a shorter --seq-len",
        )
    if of_each_domain is None or of_each_domain >= windows:
        return np.arange(windows)
    starts = file.first_domains(seq_len)
    return np.sort(np.concatenate([np.flatnonzero(starts == domain)[:of_each_domain] for domain in np.unique(starts)]))
