"""Text in the tokens of a cut vocabulary, as a model with the whole vocabulary reads it.

A row is decoded and encoded again by the whole tokenizer, so that a model that knows all tokens reads the text in the
spelling that it was trained on. Both spellings stand for the same bytes; where both end a token after the same byte,
both models have read the same text. What a row cuts off is read in the row's own tokens: a part of a character at its
start or end and, for tokenizers that put a space before a text, the rest of a word at its start. So is a run of text
that does not come back byte by byte.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minitron_cli.data.tokenizer import load_tokenizer, token_bytes


class Read(NamedTuple):
    """Rows in the ids of the whole vocabulary (row, token) int64, filled up with id 0, and where both have read alike.

    places (row, token) int64: the place in `ids` at which the same text has been read as up to each token of the row,
    -1 where that is inside a token or beyond the row. starts (row, token) bool: where a document begins in `ids`.
    """

    ids: np.ndarray
    places: np.ndarray
    starts: np.ndarray


@dataclass(frozen=True, slots=True)
class _Run:
    """Tokens [head, tail) of a row, between added tokens and document starts, that are `text`, of bytes `spelled`."""

    head: int
    tail: int
    text: str
    spelled: bytes


class Reader:
    """Reads rows of a tokenizer in the tokens of another, of which it is a cut: image (tokens,) are its ids there."""

    def __init__(self, cut: Path, whole: Path, image: np.ndarray) -> None:
        mine, theirs = load_tokenizer(cut), load_tokenizer(whole)
        self.image, self.whole_size = image, theirs.vocab_size
        # What the reading of a row depends on.
        self.digest = hashlib.sha256(f"{mine.hash} {theirs.hash}".encode()).hexdigest()
        self._backend = theirs.backend
        self._bytes, self._whole = token_bytes(mine), token_bytes(theirs)
        self._lengths, self._whole_lengths = (
            np.array([len(token) for token in tokens], np.int64) for tokens in (self._bytes, self._whole)
        )
        self._added = np.zeros(len(self._bytes), bool)
        self._added[list(mine.backend.get_added_tokens_decoder())] = True
        # What a space is put before, "a" as " a", can only be given text that begins with one; some put another there.
        self._prepends, self._doubles = (
            self._spelled(self._backend.encode(text, add_special_tokens=False).ids) == b" " + text.encode()
            for text in ("a", " a")
        )
        self._opens = np.array([self._can_open(token) for token in self._bytes], bool)

    def read(self, ids: np.ndarray, starts: np.ndarray) -> Read:
        """Rows of ids (row, token) in the other's tokens; nothing is read across `starts` (row, token) bool."""
        runs = [list(self._runs(row, begins)) for row, begins in zip(ids, starts)]
        texts = [run.text for of_row in runs for run in of_row]
        encoded = iter(self._backend.encode_batch_fast(texts, add_special_tokens=False))
        found = Read(*(np.zeros(ids.shape, kind) for kind in (np.int64, np.int64, bool)))
        for row, of_row in enumerate(runs):
            spelled = [(run, self._respelled(run, next(encoded).ids)) for run in of_row]
            self._fill(found, row, ids[row], starts[row], spelled)
        return found

    def _can_open(self, token: bytes) -> bool:
        """Whether a text can begin with this token: not inside a character (10xxxxxx goes on with one), nor a word."""
        continues = bool(token) and token[0] & 0xC0 == 0x80
        return not continues and (not self._prepends or token.startswith(b" "))

    def _runs(self, ids: np.ndarray, starts: np.ndarray) -> Iterator[_Run]:
        """The runs of a row that have a text."""
        added = self._added[ids]
        cuts = np.flatnonzero(added[1:] | added[:-1] | starts[1:]) + 1
        for first, last in zip((0, *cuts), (*cuts, len(ids))):
            opening = np.flatnonzero(self._opens[ids[first:last]])
            if not added[first] and len(opening):
                yield from self._run(ids, int(first), int(last), int(first + opening[0]))

    def _run(self, ids: np.ndarray, first: int, last: int, head: int) -> Iterator[_Run]:
        ends = np.cumsum(self._lengths[ids[head:last]])
        tail, text = last, None
        while tail > head and text is None:
            spelled = b"".join(self._bytes[i] for i in ids[head:tail])
            try:
                text = spelled.decode()
            except UnicodeDecodeError as error:
                if error.reason != "unexpected end of data":
                    return
                # The tokens up to the last whole character.
                tail = head + int(np.searchsorted(ends, error.start, side="right"))
        if text is not None:
            yield _Run(head, tail, text[1:] if self._doubles else text, spelled)

    def _respelled(self, run: _Run, found: list[int]) -> list[int] | None:
        """The tokens of the run's text, None where they are not of the same bytes."""
        return found if self._spelled(found) == run.spelled else None

    def _spelled(self, whole_ids: list[int]) -> bytes:
        return b"".join(self._whole[i] for i in whole_ids)

    def _fill(
        self, found: Read, row: int, ids: np.ndarray, starts: np.ndarray, runs: list[tuple[_Run, list[int] | None]]
    ) -> None:
        """Put a row together: what is respelled, and all other tokens by their images."""
        own, parts, done = self.image[ids], [], 0
        for run, spelled in runs:
            if spelled is not None:
                parts += [own[done : run.head], np.array(spelled, np.int64)]
                done = run.tail
        whole = np.concatenate([*parts, own[done:]])
        ends, whole_ends = np.cumsum(self._lengths[ids]), np.cumsum(self._whole_lengths[whole])
        size, known = len(ids), min(len(ids), len(whole))
        found.ids[row, :known] = whole[:known]
        places = np.searchsorted(whole_ends, ends)
        met = places < known
        met[met] = whole_ends[places[met]] == ends[met]
        found.places[row] = np.where(met, places, -1)
        # A document begins after the place at which the one before it has been read.
        begins = np.searchsorted(whole_ends, (ends - self._lengths[ids])[starts], side="right")
        found.starts[row, begins[begins < size]] = True
