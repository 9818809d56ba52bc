"""The record of one window on disk: a teacher's logits at its seq_len - 1 predictions, as bytes.

A teacher with a larger vocabulary has no prediction where it tokenises differently: such a layout has `gaps`.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from minitron_cli.data.tokens import id_type
from minitron_cli.training.cached_logits.sampled import Sampled
from minitron_cli.training.cached_logits.topk import TopK

Cached = TopK | Sampled


class Layout(Protocol):
    """Records of windows with `predictions` each, over `vocab` ids; `name` begins the names of their files."""

    @property
    def name(self) -> str: ...

    @property
    def vocab(self) -> int: ...

    def pack(self, cached: Cached, rows: int) -> list[bytes]:
        """The records of `rows` windows from rows * predictions rows."""

    def unpack(self, records: list[bytes]) -> Cached:
        """Rows for every token of the windows: of the last, which predicts nothing, a copy of the one before."""

    def ends(self, data: np.ndarray, most: int) -> np.ndarray:
        """Where each whole record of a file of bytes ends, of the first `most`: (n,) int64."""

    def most_bytes(self) -> int:
        """The most that a record can take."""


@dataclass(frozen=True, slots=True)
class TopKLayout:
    """ids (uint16, or uint32), log-probabilities and the log of the rest's probability (float16): NaN where there is a
    gap."""

    predictions: int
    top_k: int
    vocab: int
    gaps: bool = False
    name: str = "top"

    @property
    def record(self) -> np.dtype:
        kept = (self.predictions, self.top_k)
        return np.dtype(
            [("ids", id_type(self.vocab), kept), ("log_probs", "<f2", kept), ("tail", "<f2", (self.predictions,))]
        )

    def pack(self, cached: Cached, rows: int) -> list[bytes]:
        assert isinstance(cached, TopK)
        packed = np.empty(rows, self.record)
        tail = cached.tail if cached.matched is None else cached.tail.masked_fill(~cached.matched, torch.nan)
        for name, values in (("ids", cached.ids), ("log_probs", cached.log_probs), ("tail", tail)):
            # float16 has nothing below -65504: a rest of probability 0 becomes that, not -inf.
            limited = values.clamp_min(-65504.0) if values.is_floating_point() else values
            packed[name] = limited.cpu().numpy().reshape(packed[name].shape)
        return [row.tobytes() for row in packed]

    def unpack(self, records: list[bytes]) -> TopK:
        rows = np.frombuffer(b"".join(records), self.record)
        # Rounding to float16 leaves sums a little off 1.
        log_probs, tail = (_repeat_last(rows[name]).astype(np.float32) for name in ("log_probs", "tail"))
        gap = np.isnan(tail) if self.gaps else None
        if gap is not None:
            tail[gap] = 0.0
        with np.errstate(invalid="ignore"):  # what damaged bytes hold is refused by its ids
            total = np.logaddexp(np.logaddexp.reduce(log_probs, axis=-1), tail)
        ids = _flat(_repeat_last(rows["ids"]).astype(np.int64))
        matched = None if gap is None else _flat(~gap)
        return TopK(ids, _flat(log_probs - total[..., None]), _flat(tail - total), matched)

    def ends(self, data: np.ndarray, most: int) -> np.ndarray:
        size = self.record.itemsize
        return np.arange(1, min(len(data) // size, most) + 1, dtype=np.int64) * size

    def most_bytes(self) -> int:
        return self.record.itemsize


@dataclass(frozen=True, slots=True)
class SampledLayout:
    """Per prediction the entropy (float16) and how many ids were drawn, none where there is a gap; then of all of them
    the ids, and how often each was drawn (an unsigned integer), or where the proposal is not the teacher its weight
    (float32)."""

    predictions: int
    draws: int
    power: float
    vocab: int
    gaps: bool = False
    name: str = "drawn"

    @property
    def _types(self) -> tuple[np.dtype, np.dtype, np.dtype]:
        """Of the number of ids, of an id, of its count or weight."""
        count = np.dtype("u1" if self.draws < 1 << 8 else "<u2")
        return count, np.dtype(id_type(self.vocab)), count if self.power == 1.0 else np.dtype("<f4")

    def pack(self, cached: Cached, rows: int) -> list[bytes]:
        assert isinstance(cached, Sampled)
        counted, of_ids, of_weights = self._types
        ids = cached.ids.cpu().numpy()
        first = np.ones(ids.shape, bool)  # of a run of equal ids
        first[:, 1:] = ids[:, 1:] != ids[:, :-1]
        starts = np.flatnonzero(first)
        weights = np.diff(starts, append=first.size)
        if self.power != 1.0:
            weights = weights * cached.weights.cpu().numpy().ravel()[starts]
        if cached.matched is not None:
            matched = cached.matched.cpu().numpy()
            weights = weights[matched[starts // ids.shape[1]]]
            first &= matched[:, None]
        lengths = first.sum(1).reshape(rows, self.predictions)
        bounds = np.concatenate([[0], lengths.sum(1).cumsum()])
        entropy = cached.entropy.cpu().numpy().reshape(rows, self.predictions).astype("<f2")
        kept, weights = ids[first].astype(of_ids), weights.astype(of_weights)
        return [
            b"".join(part.tobytes() for part in (entropy[r], lengths[r].astype(counted), kept[a:b], weights[a:b]))
            for r, (a, b) in enumerate(pairwise(bounds))
        ]

    def unpack(self, records: list[bytes]) -> Sampled:
        parts = [self._split(np.frombuffer(record, np.uint8)) for record in records]
        entropy, lengths = (_repeat_last(np.stack([part[i] for part in parts])) for i in (0, 1))
        longest = int(lengths.max(initial=1))
        ids, weights = np.zeros((*lengths.shape, longest), np.int64), np.zeros((*lengths.shape, longest), np.float32)
        there = np.arange(longest) < lengths[..., None]
        for row, (_, _, kept, weight) in enumerate(parts):
            ids[row, :-1][there[row, :-1]], weights[row, :-1][there[row, :-1]] = kept, weight
        ids[:, -1], weights[:, -1] = ids[:, -2], weights[:, -2]
        if self.power == 1.0:
            weights /= self.draws
        matched = _flat(lengths > 0) if self.gaps else None
        return Sampled(_flat(ids), _flat(weights), _flat(entropy.astype(np.float32)), matched)

    def ends(self, data: np.ndarray, most: int) -> np.ndarray:
        found: list[int] = []
        end = 0
        while len(found) < most and end + self._fixed() <= len(data):
            end += self._size(data[end : end + self._fixed()])
            if end <= len(data):
                found.append(end)
        return np.array(found, np.int64)

    def most_bytes(self) -> int:
        _, of_ids, of_weights = self._types
        return self._fixed() + self.predictions * self.draws * (of_ids.itemsize + of_weights.itemsize)

    def _fixed(self) -> int:
        """Bytes of a record before its ids."""
        return self.predictions * (2 + self._types[0].itemsize)

    def _size(self, head: np.ndarray) -> int:
        """Bytes of the record that begins with `head`."""
        counted, of_ids, of_weights = self._types
        total = int(head[2 * self.predictions :].view(counted).sum(dtype=np.int64))
        return len(head) + total * (of_ids.itemsize + of_weights.itemsize)

    def _split(self, record: np.ndarray) -> tuple[np.ndarray, ...]:
        """entropy (P,), lengths (P,), ids and weights (n,) of a record of bytes."""
        counted, of_ids, of_weights = self._types
        entropy, lengths, rest = np.split(record, [2 * self.predictions, self._fixed()])
        found = lengths.view(counted).astype(np.int64)
        middle = int(found.sum()) * of_ids.itemsize
        return entropy.view("<f2"), found, rest[:middle].view(of_ids), rest[middle:].view(of_weights)


def _repeat_last(rows: np.ndarray) -> np.ndarray:
    return np.concatenate([rows, rows[:, -1:]], axis=1)


def _flat(rows: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(rows.reshape(-1, *rows.shape[2:])))
