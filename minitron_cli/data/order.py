"""The order of training rows as a pure function of the step.

Row k of step s is number g = s * global_batch + k of one endless sequence. The mixture gives its domain and its
number c among that domain's rows; with n windows in the domain that is place c mod n of the permutation of epoch c //
n. There is no state to save: a run resumes from its step number, and neither world size nor micro-batch enters.

Where phases have rows of several lengths, what is permuted are blocks of the longest, which the others divide. A phase
takes whole blocks, cuts those that it takes of an epoch into its rows, and reads these in an order of their own: so no
token of an epoch is in two rows, whatever their lengths. Less than a block of each domain goes unread where one ends.
"""

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from minitron_cli.data.permutation import derive, permute
from minitron_cli.data.schedule import Phase, Schedule
from minitron_cli.data.tokens import TokenFile, require_one_tokenizer
from minitron_cli.errors import MinitronError


@dataclass(frozen=True, slots=True, eq=False)
class Order:
    """Rows of `seq_len` tokens out of `files`, mixed by `weights`, `global_batch` a step, once the `phases` are over.

    A domain goes on where it was when a phase ends.
    """

    files: tuple[TokenFile, ...]
    weights: tuple[float, ...]
    seq_len: int
    global_batch: int
    seed: int
    phases: tuple[Phase, ...] = ()
    _schedule: Schedule = field(init=False, repr=False)
    _blocks: tuple[np.ndarray, ...] = field(init=False, repr=False)  # (file,) that were taken before each span

    def __post_init__(self) -> None:
        assert min(self.lengths) > 1, "a row of one token predicts nothing"
        if odd := [length for length in self.lengths if self.block % length]:
            raise MinitronError(
                f"rows of {', '.join(map(str, odd))} tokens do not divide those of {self.block}",
                "take lengths that divide the longest, so that rows of both never share a token",
            )
        if len(self.weights) != len(self.files):
            raise MinitronError(
                f"{len(self.weights)} weights for {len(self.files)} sources", "give one weight per source"
            )
        require_one_tokenizer(self.files)
        require_windows(self.files, self.block)
        object.__setattr__(self, "_schedule", Schedule(self.weights, self.global_batch, self.phases))
        blocks = [np.zeros(len(self.files), np.int64)]
        for number, (span, following) in enumerate(pairwise(self._schedule.spans)):
            blocks.append(blocks[-1] - -(following.used - span.used) // self._fold(number))
        object.__setattr__(self, "_blocks", tuple(blocks))

    @property
    def lengths(self) -> tuple[int, ...]:
        """The lengths of rows that there are, ascending."""
        return tuple(sorted({self.seq_len, *(phase.seq_len or self.seq_len for phase in self.phases)}))

    @property
    def block(self) -> int:
        """Tokens of the longest row: what an epoch permutes."""
        return self.lengths[-1]

    @property
    def num_lost(self) -> int:
        """Blocks that go unread at the most where phases end."""
        return len(self.phases) * len(self.files) if len(self.lengths) > 1 else 0

    def length(self, step: int) -> int:
        """Tokens of a row of `step`."""
        return self.block // self._fold(self._schedule.span_at(step))

    def places(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """File and window (of `length(step)` tokens) of every row of `step`: two (row,) int64."""
        span = self._schedule.span_at(step)
        domains, numbers = self._schedule.numbers(step)
        windows = np.empty_like(numbers)
        for domain in np.unique(domains):
            mine = domains == domain
            windows[mine] = self._windows(int(domain), span, numbers[mine])
        return domains, windows

    def rows(self, step: int) -> np.ndarray:
        """The token ids of `step`: (row, token) int64. A row makes one prediction less than it has tokens."""
        return self.rows_at(*self.places(step), self.length(step))

    def rows_at(self, files: np.ndarray, windows: np.ndarray, seq_len: int) -> np.ndarray:
        """The token ids of window windows[r] of file files[r], two (row,): (row, seq_len) int64."""
        rows = np.empty((len(files), seq_len), np.int64)
        for file in np.unique(files):
            mine = files == file
            rows[mine] = self.files[file].windows(windows[mine], seq_len)
        return rows

    def documents(self, step: int) -> np.ndarray:
        """Which document of its row each token belongs to, from 0: (row, token) int64, as `rows`."""
        return self.documents_at(*self.places(step), self.length(step))

    def documents_at(self, files: np.ndarray, windows: np.ndarray, seq_len: int) -> np.ndarray:
        """`documents` of window windows[r] of file files[r], two (row,): (row, seq_len) int64."""
        numbers = np.empty((len(files), seq_len), np.int64)
        for file in np.unique(files):
            mine = files == file
            numbers[mine] = self.files[file].document_numbers(windows[mine], seq_len)
        return numbers - numbers[:, :1]

    def epochs(self, step: int) -> np.ndarray:
        """How often each file has been read when `step` begins: (file,) float64."""
        number = self._schedule.span_at(step)
        rows = self.used(step) - self._schedule.spans[number].used
        taken = self._blocks[number] + rows / self._fold(number)
        return taken / np.array([file.num_windows(self.block) for file in self.files])

    def used(self, step: int) -> np.ndarray:
        """How many rows of each file have been read when `step` begins: (file,) int64."""
        return self._schedule.used(step)

    def history(self, step: int) -> list[Any]:
        """What decides the rows before `step`: orders of which it is equal read the same until then, and go on alike.

        Rows shorter than a block are read in an order that depends on where their phase ends.
        """
        found: list[Any] = [self.seed, self.block, [file.header.tokens_sha256 for file in self.files]]
        spans = self._schedule.spans
        for number, span in enumerate(spans):
            if span.first_step >= step:
                break
            end, fold = spans[number + 1].first_step if number + 1 < len(spans) else None, self._fold(number)
            if fold == 1 and (end is None or end > step):
                end = step
            found.append((span.first_step, end, span.weights, span.global_batch, fold))
        return found

    def _fold(self, span: int) -> int:
        """Rows of a span in a block."""
        return self.block // (self._schedule.spans[span].seq_len or self.seq_len)

    def _windows(self, domain: int, span: int, numbers: np.ndarray) -> np.ndarray:
        """Windows of the rows `numbers` of a domain in a span, counted from the domain's first of all: (n,) int64."""
        count, fold = self.files[domain].num_windows(self.block), self._fold(span)
        begin = int(self._blocks[span][domain])
        end = None if span + 1 == len(self._blocks) else int(self._blocks[span + 1][domain])
        places = begin * fold + numbers - self._schedule.spans[span].used[domain]
        epochs = places // (count * fold)
        windows = np.empty_like(numbers)
        for epoch in np.unique(epochs).tolist():
            mine = epochs == epoch
            at = places[mine]
            if fold > 1:
                # The rows in the blocks that the span takes of this epoch, in an order of their own.
                first, last = max(begin, epoch * count), (epoch + 1) * count
                rows = (last if end is None else min(last, end)) - first
                at = first * fold + permute(at - first * fold, rows * fold, derive(self.seed, domain, epoch, first))
            blocks = permute(at // fold % count, count, derive(self.seed, domain, epoch))
            windows[mine] = blocks * fold + at % fold
        return windows


def mixture_weights(given: tuple[float | None, ...], files: tuple[TokenFile, ...], seq_len: int) -> tuple[float, ...]:
    """The weights that the sources name; where they name none, the sizes: one pass over all reads each window once."""
    named = [weight for weight in given if weight is not None]
    if len(named) == len(given):
        return tuple(named)
    assert not named, "parse_sources refuses a weight on some sources only"
    return tuple(float(file.num_windows(seq_len)) for file in files)


def require_windows(files: tuple[TokenFile, ...], seq_len: int) -> None:
    """Refuse files that are shorter than one window."""
    short = [f"{file.name} has {file.header.num_tokens:,}" for file in files if not file.num_windows(seq_len)]
    if short:
        raise MinitronError(
            f"too few tokens for one row of {seq_len:,}: {'; '.join(short)}", "give more data or a smaller --seq-len"
        )
