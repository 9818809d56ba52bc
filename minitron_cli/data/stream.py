"""Training rows from corpora that are never tokenised as a whole: shuffled, and resumed exactly.

The text is read in its own order, packed end to end, and cut into blocks of `block_rows` rows. What a block holds
depends on the source alone; inside it the rows come in the order of a permutation of the seed and the block's number.
So row c of a stream is a function of c, as in a token file, and a run resumes from its step number: there is no shuffle
buffer whose content is lost. The index file (a line per block: where its text begins, the digest of its tokens) only
saves reading again what came before, and tells when the source has changed under a run.
"""

import hashlib
import json
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from minitron_cli.data.permutation import derive, permute
from minitron_cli.data.schedule import Phase, Schedule
from minitron_cli.data.source import Source
from minitron_cli.data.stream_text import Position, Text, open_text
from minitron_cli.data.tokenizer import TextTokenizer, separator_ids
from minitron_cli.errors import MinitronError

BLOCK_TOKENS = 1 << 22
_STREAM = 0x57


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where a block begins: the position of a batch of documents, and the tokens of it that went before."""

    position: Position = None
    skip: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Packing:
    """How text becomes rows."""

    tokenizer: TextTokenizer
    before: list[int]
    after: list[int]
    seq_len: int
    block_rows: int

    def encode(self, texts: list[str]) -> np.ndarray:
        """The documents end to end with their separators: (tokens,) uint32."""
        encoded = self.tokenizer.backend.encode_batch_fast(texts, add_special_tokens=False)
        rows = [np.array([*self.before, *row.ids, *self.after], np.uint32) for row in encoded]
        return np.concatenate(rows) if rows else np.zeros(0, np.uint32)


def read_blocks(text: Text, packing: Packing, cursor: Cursor) -> Iterator[tuple[Cursor, np.ndarray]]:
    """The blocks from `cursor` on, pass after pass without end: its cursor and (block_rows, seq_len) uint32."""
    size = packing.block_rows * packing.seq_len
    held: deque[tuple[Cursor, np.ndarray]] = deque()
    position, skip, found = cursor.position, cursor.skip, cursor != Cursor()
    while True:
        start = position
        for documents, after in text.batches(position):
            tokens = packing.encode([document.text for document in documents if document.text])[skip:]
            if len(tokens):
                held.append((Cursor(start, skip), tokens))
                found = True
            start, skip = after, 0
            while sum(len(tokens) for _, tokens in held) >= size:
                yield held[0][0], _take(held, size).reshape(packing.block_rows, packing.seq_len)
        if not found:
            raise MinitronError(f"no text in {text.name}: every document is empty", "check --text-field")
        position, skip = None, 0


def _take(held: deque[tuple[Cursor, np.ndarray]], size: int) -> np.ndarray:
    """Remove the first `size` tokens of `held`."""
    taken = []
    while size:
        cursor, tokens = held.popleft()
        taken.append(tokens[:size])
        if len(tokens) > size:
            held.appendleft((Cursor(cursor.position, cursor.skip + size), tokens[size:]))
        size -= len(taken[-1])
    return np.concatenate(taken)


class RowStream:
    """The rows of one source by number. Rows are asked for in ascending steps; going back reads again."""

    def __init__(
        self,
        source: Source,
        tokenizer: TextTokenizer,
        seq_len: int,
        seed: int,
        separator: str = "auto",
        text_field: str | None = None,
        block_rows: int | None = None,
        index: Path | None = None,
    ) -> None:
        name, before, after = separator_ids(tokenizer, separator)
        self.block_rows = block_rows or max(BLOCK_TOKENS // seq_len, 1)
        self.seq_len = seq_len
        self._seed = seed
        self._text = open_text(source, text_field)
        self._packing = Packing(tokenizer, before, after, seq_len, self.block_rows)
        self._identity = {
            "source": source.spec.removesuffix(f":{source.weight:g}") if source.weight else source.spec,
            "tokenizer_hash": tokenizer.hash,
            "separator": name,
            "text_field": text_field,
            "seq_len": seq_len,
            "block_rows": self.block_rows,
        }
        self._index = BlockIndex(index, self._identity)
        self._blocks: dict[int, np.ndarray] = {}
        self._reader: Iterator[tuple[Cursor, np.ndarray]] | None = None
        self._ahead: Future[tuple[Cursor, np.ndarray]] | None = None
        self._next = 0
        self._pool = ThreadPoolExecutor(1, "minitron-read")

    def rows(self, numbers: np.ndarray) -> np.ndarray:
        """Rows `numbers` (n,) of the shuffled stream: (n, seq_len) int64."""
        blocks, places = np.divmod(numbers, self.block_rows)
        rows = np.empty((len(numbers), self.seq_len), np.int64)
        for block in np.unique(blocks).tolist():
            mine = blocks == block
            order = permute(places[mine], self.block_rows, derive(self._seed, _STREAM, block))
            rows[mine] = self._block(block)[order]
        return rows

    def identity(self) -> dict[str, Any]:
        """What the rows depend on (JSON); the content itself is watched by the index."""
        return {**self._identity, "seed": self._seed}

    def close(self) -> None:
        """Stop reading ahead."""
        self._pool.shutdown(cancel_futures=True)

    def _block(self, number: int) -> np.ndarray:
        if number not in self._blocks:
            begin = self._index.nearest(number)
            if self._reader is None or number < self._next or begin[0] > self._next:
                self._restart(*begin)
            while self._next <= number:
                self._advance()
        return self._blocks[number]

    def _restart(self, number: int, cursor: Cursor) -> None:
        if self._ahead is not None:
            self._ahead.result()  # the thread is in the old reader until then
        self._reader, self._next = read_blocks(self._text, self._packing, cursor), number
        self._ahead = self._pool.submit(next, self._reader)

    def _advance(self) -> None:
        assert self._ahead is not None, "a reader has its next block under way"
        assert self._reader is not None, "as above"
        cursor, block = self._ahead.result()
        self._index.record(self._next, cursor, block, self._text.name)
        # A step may straddle two blocks, and no more are kept.
        self._blocks = {number: kept for number, kept in self._blocks.items() if number == self._next - 1}
        self._blocks[self._next] = block
        self._next += 1
        self._ahead = self._pool.submit(next, self._reader)


class BlockIndex:
    """Where blocks begin and what they hold; kept in a file of JSON lines when given one."""

    def __init__(self, file: Path | None, identity: dict[str, Any]) -> None:
        self._file = file
        self._known: dict[int, tuple[Cursor, str]] = {}
        if file is None:
            return
        lines = _whole_lines(file)
        if lines and lines[0] != identity:
            raise MinitronError(f"{file} is the index of another stream", "remove it, or choose another run directory")
        for line in lines[1:]:
            self._known[line["block"]] = (Cursor(line["position"], line["skip"]), line["sha256"])
        # Written again without a line that a killed process left torn.
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(json.dumps(line) + "\n" for line in lines or [identity]), encoding="utf-8")

    def nearest(self, number: int) -> tuple[int, Cursor]:
        """The last known block at or before `number`, and where it begins."""
        best = max((known for known in self._known if known <= number), default=0)
        return best, self._known[best][0] if best in self._known else Cursor()

    def record(self, number: int, cursor: Cursor, block: np.ndarray, name: str) -> None:
        """Remember a block that was read, or compare it with what it was before."""
        digest = hashlib.sha256(block.astype("<u4").tobytes()).hexdigest()
        if number in self._known:
            if self._known[number][1] != digest:
                raise MinitronError(
                    f"{name} has changed: block {number} is not what this run read there before",
                    "restore the data, or start a new run",
                )
            return
        self._known[number] = (cursor, digest)
        if self._file is not None:
            line = {"block": number, "position": cursor.position, "skip": cursor.skip, "sha256": digest}
            with self._file.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(line) + "\n")


def _whole_lines(file: Path) -> list[dict[str, Any]]:
    if not file.is_file():
        return []
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


@dataclass(frozen=True, slots=True, eq=False)
class StreamOrder:
    """`Order` over streams, whose rows are all of one length."""

    streams: tuple[RowStream, ...]
    weights: tuple[float, ...]
    global_batch: int
    phases: tuple[Phase, ...] = ()
    _schedule: Schedule = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if len(self.weights) != len(self.streams):
            raise MinitronError(
                f"{len(self.weights)} weights for {len(self.streams)} sources",
                "streams have no size that is known: give each a weight (SOURCE:0.7)",
            )
        object.__setattr__(self, "_schedule", Schedule(self.weights, self.global_batch, self.phases))

    def rows(self, step: int) -> np.ndarray:
        """The token ids of `step`: (row, seq_len) int64."""
        domains, numbers = self._schedule.numbers(step)
        rows = np.empty((len(numbers), self.streams[0].seq_len), np.int64)
        for domain in np.unique(domains):
            mine = domains == domain
            rows[mine] = self.streams[domain].rows(numbers[mine])
        return rows

    def identity(self) -> dict[str, Any]:
        """What the sequence of rows depends on (JSON)."""
        return {"streams": [stream.identity() for stream in self.streams], **self._schedule.identity()}
