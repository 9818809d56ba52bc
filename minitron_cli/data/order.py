"""The order of training rows as a pure function of the step.

Row k of step s is number g = s * global_batch + k of one endless sequence. The mixture says which domain g belongs to
and the how-manieth of that domain it is; c of n windows means epoch c // n, place c mod n of the permutation of that
epoch. There is no state to save: a run resumes from its step number, and neither world size nor micro-batch enters.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from minitron_cli.data.permutation import derive, permute
from minitron_cli.data.schedule import Phase, Schedule
from minitron_cli.data.tokens import TokenFile, require_one_tokenizer
from minitron_cli.errors import MinitronError


@dataclass(frozen=True, slots=True, eq=False)
class Order:
    """Rows of `seq_len` tokens out of `files`, mixed by `weights`, `global_batch` a step.

    `phases` = ((until_step, weights), ...): other weights for the steps below each `until_step`; `weights` hold after
    the last. A domain goes on where it was when the weights change.
    """

    files: tuple[TokenFile, ...]
    weights: tuple[float, ...]
    seq_len: int
    global_batch: int
    seed: int
    phases: tuple[Phase, ...] = ()
    _schedule: Schedule = field(init=False, repr=False)

    def __post_init__(self) -> None:
        assert self.seq_len > 1, "a row of one token predicts nothing"
        if len(self.weights) != len(self.files):
            raise MinitronError(
                f"{len(self.weights)} weights for {len(self.files)} sources", "give one weight per source"
            )
        require_one_tokenizer(self.files)
        require_windows(self.files, self.seq_len)
        object.__setattr__(self, "_schedule", Schedule(self.weights, self.global_batch, self.phases))

    def places(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """File and window of every row of `step`: two (global_batch,) int64."""
        domains, numbers = self._schedule.numbers(step)
        windows = np.empty_like(numbers)
        for domain in np.unique(domains):
            mine = domains == domain
            windows[mine] = self._windows(int(domain), numbers[mine])
        return domains, windows

    def rows(self, step: int) -> np.ndarray:
        """The token ids of `step`: (global_batch, seq_len) int64. A row makes seq_len - 1 predictions."""
        return self.rows_at(*self.places(step))

    def rows_at(self, files: np.ndarray, windows: np.ndarray) -> np.ndarray:
        """The token ids of window windows[r] of file files[r], two (row,): (row, seq_len) int64."""
        rows = np.empty((len(files), self.seq_len), np.int64)
        for file in np.unique(files):
            mine = files == file
            rows[mine] = self.files[file].windows(windows[mine], self.seq_len)
        return rows

    def documents(self, step: int) -> np.ndarray:
        """Which document of its row each token belongs to, from 0: (global_batch, seq_len) int64, as `rows`."""
        return self.documents_at(*self.places(step))

    def documents_at(self, files: np.ndarray, windows: np.ndarray) -> np.ndarray:
        """`documents` of window windows[r] of file files[r], two (row,): (row, seq_len) int64."""
        numbers = np.empty((len(files), self.seq_len), np.int64)
        for file in np.unique(files):
            mine = files == file
            numbers[mine] = self.files[file].document_numbers(windows[mine], self.seq_len)
        return numbers - numbers[:, :1]

    def epochs(self, step: int) -> np.ndarray:
        """How often each file has been read when `step` begins: (file,) float64."""
        return self.used(step) / np.array([file.num_windows(self.seq_len) for file in self.files])

    def used(self, step: int) -> np.ndarray:
        """How many rows of each file have been read when `step` begins: (file,) int64."""
        return self._schedule.used(step)

    def identity(self) -> dict[str, Any]:
        """What the sequence of rows depends on, for run options and manifests (JSON)."""
        return {
            "seed": self.seed,
            "seq_len": self.seq_len,
            "tokens_sha256": [file.header.tokens_sha256 for file in self.files],
            **self._schedule.identity(),
        }

    def _windows(self, domain: int, numbers: np.ndarray) -> np.ndarray:
        """Windows of the rows `numbers` of a domain, counted from its first row: (n,) int64."""
        count = self.files[domain].num_windows(self.seq_len)
        epochs, places = np.divmod(numbers, count)
        windows = np.empty_like(numbers)
        for epoch in np.unique(epochs):
            mine = epochs == epoch
            windows[mine] = permute(places[mine], count, derive(self.seed, domain, int(epoch)))
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
