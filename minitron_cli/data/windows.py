"""Validation windows: the first n windows of a token file, and the text that they cover, to the byte.

Windows are cut end to end, so the last one usually ends inside a document. The index of the file gives the bytes of
whole documents; the vocabulary says how many bytes the tokens of the cut one stand for.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from minitron_cli.data.tokenizer import TextTokenizer, token_byte_lengths
from minitron_cli.data.tokens import TokenFile
from minitron_cli.errors import MinitronError


@dataclass(frozen=True, slots=True)
class Coverage:
    """What the first tokens of a file hold, per domain of its header: (domain,) each."""

    tokens: np.ndarray  # int64
    num_bytes: np.ndarray  # float64: whole numbers where `exact`
    exact: bool  # False where the cut document's text can not be counted token by token


def first_windows(
    file: TokenFile, seq_len: int, limit: int | None = None, batch: int = 8
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """`(ids, domains)` of the first `limit` windows (all: None), `batch` at a time: (b, seq_len) int64 each.

    `domains` index into `file.header.domains`, token by token: a window may span documents of several.
    """
    count = num_first_windows(file, seq_len, limit)
    for start in range(0, count, batch):
        indices = np.arange(start, min(start + batch, count))
        yield file.windows(indices, seq_len), file.domain_numbers(indices, seq_len)


def num_first_windows(file: TokenFile, seq_len: int, limit: int | None = None) -> int:
    """How many windows `first_windows` gives; none at all is the user's error."""
    count = file.num_windows(seq_len)
    if not count:
        raise MinitronError(
            f"{file.path} has {file.header.num_tokens:,} tokens, one window needs {seq_len:,}",
            "give more data or a smaller --seq-len",
        )
    return count if limit is None else min(limit, count)


def coverage(file: TokenFile, num_tokens: int, tokenizer: TextTokenizer | None = None) -> Coverage:
    """Tokens and bytes of text of the first `num_tokens` tokens, per domain.

    Without the tokenizer, or where its normaliser changes the text, the document that the end cuts counts by its share
    of tokens, and the result is not `exact`.
    """
    assert 0 <= num_tokens <= file.header.num_tokens, "more tokens than the file has"
    ends, byte_ends = file.documents["end"], file.documents["byte_end"]
    whole = int(np.searchsorted(ends, num_tokens, side="right"))  # documents that end at or before the cut
    domains = file.documents["domain"][: whole + 1].astype(np.int64)
    sizes = np.diff(ends[:whole].astype(np.int64), prepend=0).astype(np.float64)
    text = np.diff(byte_ends[:whole].astype(np.int64), prepend=0).astype(np.float64)
    exact = True
    cut = num_tokens - (int(ends[whole - 1]) if whole else 0)
    if cut:
        partial, exact = _cut_bytes(file, whole, cut, tokenizer)
        sizes, text = np.append(sizes, cut), np.append(text, partial)
    count = len(file.header.domains)
    tokens = np.bincount(domains[: len(sizes)], sizes, count).astype(np.int64)
    return Coverage(tokens, np.bincount(domains[: len(text)], text, count), exact)


def bits_per_byte(nats_per_token: float, tokens: float, num_bytes: float) -> float:
    """Loss per byte of text in bits: nats per token x tokens per byte / ln 2 (The Pile, arXiv 2101.00027, sec. 3.1)."""
    return nats_per_token * tokens / num_bytes / math.log(2)


def _cut_bytes(file: TokenFile, document: int, cut: int, tokenizer: TextTokenizer | None) -> tuple[float, bool]:
    """Bytes of text in the first `cut` tokens of a document, and whether that is exact."""
    starts, stops = file.document_spans(np.array([document]))
    before = int(file.documents["byte_end"][document - 1]) if document else 0
    size = int(file.documents["byte_end"][document]) - before
    share = size * cut / int(stops[0] - starts[0])
    if tokenizer is None:
        return share, False
    lengths = token_byte_lengths(tokenizer)[file.tokens[starts[0] : stops[0]]]
    # SentencePiece vocabularies put one space in front of a document that its text does not have.
    surplus = int(lengths.sum()) - size
    found = int(lengths[:cut].sum())
    if surplus not in (0, 1):
        return share, False
    return float(found - (surplus if found else 0)), True
