"""The order of training rows as a pure function of the step.

Row k of step s is number g = s * global_batch + k of one endless sequence. The mixture says which domain g belongs to
and the how-manieth of that domain it is; c of n windows means epoch c // n, place c mod n of the permutation of that
epoch. There is no state to save: a run resumes from its step number, and neither world size nor micro-batch enters.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from minitron_cli.data.mixture import counts, exact_weights, sequence
from minitron_cli.data.permutation import derive, permute
from minitron_cli.data.tokens import TokenFile, require_one_tokenizer
from minitron_cli.errors import MinitronError

Phase = tuple[int, tuple[float, ...]]


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
    _spans: tuple[tuple[int, int | None, tuple[int, ...], np.ndarray], ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        assert self.global_batch > 0, "a step without rows"
        assert self.seq_len > 1, "a row of one token predicts nothing"
        require_one_tokenizer(self.files)
        _require_windows(self.files, self.seq_len)
        object.__setattr__(self, "_spans", self._phase_spans())

    def places(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """File and window of every row of `step`: two (global_batch,) int64."""
        first_step, _, weights, used = next(s for s in reversed(self._spans) if s[0] <= step)
        start = (step - first_step) * self.global_batch
        domains, numbers = sequence(weights, start, start + self.global_batch)
        numbers = numbers + used[domains]
        windows = np.empty_like(numbers)
        for domain in np.unique(domains):
            mine = domains == domain
            windows[mine] = self._windows(int(domain), numbers[mine])
        return domains, windows

    def rows(self, step: int) -> np.ndarray:
        """The token ids of `step`: (global_batch, seq_len) int64. A row makes seq_len - 1 predictions."""
        domains, windows = self.places(step)
        rows = np.empty((self.global_batch, self.seq_len), np.int64)
        for domain in np.unique(domains):
            mine = domains == domain
            rows[mine] = self.files[domain].windows(windows[mine], self.seq_len)
        return rows

    def documents(self, step: int) -> np.ndarray:
        """Which document of its row each token belongs to, from 0: (global_batch, seq_len) int64, as `rows`.

        For training that keeps attention inside documents.
        """
        domains, windows = self.places(step)
        numbers = np.empty((self.global_batch, self.seq_len), np.int64)
        for domain in np.unique(domains):
            mine = domains == domain
            numbers[mine] = self.files[domain].document_numbers(windows[mine], self.seq_len)
        return numbers - numbers[:, :1]

    def epochs(self, step: int) -> np.ndarray:
        """How often each file has been read when `step` begins: (file,) float64."""
        first_step, _, weights, used = next(s for s in reversed(self._spans) if s[0] <= step)
        read = used + counts(weights, (step - first_step) * self.global_batch)
        return read / np.array([file.num_windows(self.seq_len) for file in self.files])

    def identity(self) -> dict[str, Any]:
        """What the sequence of rows depends on, for run options and manifests (JSON)."""
        return {
            "seed": self.seed,
            "seq_len": self.seq_len,
            "global_batch": self.global_batch,
            "tokens_sha256": [file.header.tokens_sha256 for file in self.files],
            "weights": list(self.weights),
            "phases": [[until, list(weights)] for until, weights in self.phases],
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

    def _phase_spans(self) -> tuple[tuple[int, int | None, tuple[int, ...], np.ndarray], ...]:
        """(first step, step past the last, weights, rows that each domain has given before) per phase."""
        untils = [until for until, _ in self.phases]
        if untils != sorted(set(untils)) or any(until <= 0 for until in untils):
            raise MinitronError(f"phases end at steps {untils}", "give them in ascending order, each above 0")
        spans: list[tuple[int, int | None, tuple[int, ...], np.ndarray]] = []
        first, used = 0, np.zeros(len(self.files), np.int64)
        for until, shares in (*self.phases, (None, self.weights)):
            if len(shares) != len(self.files):
                raise MinitronError(
                    f"{len(shares)} weights for {len(self.files)} sources", "give one weight per source"
                )
            weights = exact_weights(shares)
            spans.append((first, until, weights, used))
            if until is not None:
                used = used + counts(weights, (until - first) * self.global_batch)
                first = until
        return tuple(spans)


def mixture_weights(given: tuple[float | None, ...], files: tuple[TokenFile, ...], seq_len: int) -> tuple[float, ...]:
    """The weights that the sources name; where they name none, the sizes: one pass over all reads each window once."""
    named = [weight for weight in given if weight is not None]
    if len(named) == len(given):
        return tuple(named)
    assert not named, "parse_sources refuses a weight on some sources only"
    return tuple(float(file.num_windows(seq_len)) for file in files)


def _require_windows(files: tuple[TokenFile, ...], seq_len: int) -> None:
    short = [f"{file.path} has {file.header.num_tokens:,}" for file in files if not file.num_windows(seq_len)]
    if short:
        raise MinitronError(
            f"too few tokens for one row of {seq_len:,}: {'; '.join(short)}", "give more data or a smaller --seq-len"
        )
