"""Rotating the residual stream: leading directions are kept in the place of single channels.

A block that reads the stream x through an RMS norm sees x^ = x / rms(x), and a product with the norm's weights. With
an orthonormal basis Q (hidden, kept) the student's stream is z = Q^T x, and its architecture stays the same:

    embedding E -> E Q,   writers W -> Q^T W,   readers W -> W diag(w / c) F,   norms w -> c s

F, the least-squares map from Q^T x^ to x^, follows from M = E[x^ x^T], and that from the input Gram matrices after each
norm. The student's norm divides by the root mean square of fewer numbers: s makes up for it. c is the root mean square
of the norm's weights, so that matrices keep the magnitude that they were trained at. With all directions kept all of it
is exact. A head that is tied to the embedding cannot be refitted by itself: it decides the basis of the subspace, and
the final norm's weights are fitted to it (see `tied`).

A LayerNorm subtracts the mean over channels first: Q takes the direction of the source's mean to that of the student's
(see `directions.with_mean`), so that the rest of the stream is read as after an RMS norm of the rest. Its bias b goes
along that direction too, in which readers see nothing else: they take it to W b. Which direction it has is free.

SliceGPT (arXiv 2401.15024) rotates the stream too, by a basis for each block and matrices on the residual path that no
Hugging Face architecture has; one basis for all needs none.
"""

from dataclasses import dataclass, field

import numpy as np

from minitron_cli.checkpoint.bits import from_bits, to_bits
from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.prune.compensate import RIDGE, Compensation, Refit
from minitron_cli.prune.directions import (
    Norm,
    bias_of,
    least_squares_map,
    mean_of,
    normalised,
    norms_of,
    scale_of,
    tied_head,
)
from minitron_cli.prune.repairs import embedding_scale
from minitron_cli.spec.axes import is_embedding
from minitron_cli.spec.family import Match
from minitron_cli.spec.plan import Plan

_HELD = 4  # maps held: the readers of one norm are not next to each other on disk


@dataclass(slots=True)
class Rotation:
    """A plan's basis, and what rotates each tensor into it."""

    checkpoint: Checkpoint
    plan: Plan
    compensation: Compensation
    norms: dict[tuple[str, int | None], Norm]
    embedding: np.ndarray  # what embeddings are multiplied by: the basis, scaled as the model needs it
    _held: dict[tuple[str, int | None], np.ndarray] = field(default_factory=dict)

    @property
    def basis(self) -> np.ndarray:
        assert self.plan.basis is not None
        return self.plan.basis

    def change_of(self, match: Match, refit: Refit | None) -> "Rotated | None":
        """How a tensor is rotated; None for one that has no part in the stream. `refit` cuts its other inputs."""
        weight = match.weight
        if "hidden" not in weight.axes:
            return None
        if weight.name in self.checkpoint.family.norms:
            return Rotated(self, "norm", (weight.name, match.layer))
        for norm in self.checkpoint.family.norms:
            if weight.name == bias_of(norm):
                return Rotated(self, "bias", (norm, match.layer))
        line = self.checkpoint.family.norm_of(weight)
        if line is not None:
            return Rotated(self, "reader", (line, match.layer))
        return Rotated(self, "embedding" if is_embedding(weight) else "writer", refit=refit)

    def reading(self, key: tuple[str, int | None]) -> np.ndarray:
        """diag(w / c) F of a norm: (hidden, kept) float32."""
        if key not in self._held:
            while len(self._held) >= _HELD:
                del self._held[next(iter(self._held))]
            norm = self.norms[key]
            ridge = RIDGE if self.compensation.ridge is None else self.compensation.ridge
            solved, error = least_squares_map(normalised(norm, self.compensation), self.basis, ridge)
            name = norm.line.rpartition("{layer}.")[2].removesuffix(".weight")
            self.compensation.errors[f"hidden ({name})", norm.layer, None] = error
            found = norm.weight[:, None] / norm.size * solved
            if norm.centred:
                mean = mean_of(len(self.basis.T))
                found -= np.outer(found @ mean, mean)
                if norm.bias is not None and (size := self.norm_bias(key) @ mean):
                    found += np.outer(norm.bias, mean) / size
            self._held[key] = found.astype(np.float32)
        return self._held[key]

    def norm_bias(self, key: tuple[str, int | None]) -> np.ndarray:
        """The bias of a LayerNorm (kept,): along the mean over channels, of which readers see nothing else.

        They map it to what the source's bias gives. With a head tied to the embedding, the one best for the logits.
        """
        norm, kept = self.norms[key], self.plan.target["hidden"]
        assert norm.bias is not None
        tied = None if norm.layer is not None else tied_head(self.checkpoint, norm, self.compensation)
        if tied is not None:
            return tied.bias(self.basis) / embedding_scale(self.checkpoint.family, self.plan)
        return np.full(kept, np.sqrt(np.mean(np.square(norm.bias))))

    def norm_weights(self, key: tuple[str, int | None]) -> np.ndarray:
        """Effective weights of a norm (kept,): all the same, but for a final norm with a head tied to the embedding."""
        norm, kept = self.norms[key], self.plan.target["hidden"]
        scale = scale_of(normalised(norm, self.compensation), self.basis)
        tied = None if norm.layer is not None else tied_head(self.checkpoint, norm, self.compensation)
        if tied is None:
            return np.full(kept, norm.size * scale)
        found = tied.diagonal(self.basis)
        self.compensation.errors["logits", None, None] = tied.error(self.basis, found)
        return np.diagonal(found) * scale / embedding_scale(self.checkpoint.family, self.plan)


@dataclass(frozen=True, slots=True)
class Rotated:
    """Rows of a tensor as they are stored -> rows in the basis. Writers mix rows, so they need all of them at once."""

    by: Rotation
    role: str  # norm, bias (of a norm), reader, embedding or writer
    norm: tuple[str, int | None] = ("", None)
    refit: Refit | None = None

    @property
    def whole(self) -> bool:
        """Whether a piece has to come in one block."""
        return self.role in ("writer", "norm", "bias")

    def apply(self, raw: np.ndarray, dtype: str, columns: np.ndarray | None) -> np.ndarray:
        """Bits in, bits out; `columns` are the positions kept of a writer's inputs (None: all). Rounded once."""
        wide = np.float64 if dtype == "F64" else np.float32
        if self.role == "norm":
            return to_bits(
                (self.by.norm_weights(self.norm) - self.by.checkpoint.family.norm_offset).astype(wide), dtype
            )
        if self.role == "bias":
            return to_bits(self.by.norm_bias(self.norm).astype(wide), dtype)
        if self.role == "writer":
            kept = self.refit.values(raw, dtype) if self.refit else _columns(from_bits(raw, dtype), columns)
            return to_bits(self.by.basis.T.astype(wide, copy=False) @ kept.astype(wide, copy=False), dtype)
        values = from_bits(raw, dtype).astype(wide, copy=False)
        if self.role == "embedding":
            return to_bits(values @ self.by.embedding.astype(wide, copy=False), dtype)
        return to_bits(values @ self.by.reading(self.norm).astype(wide, copy=False), dtype)


def _columns(values: np.ndarray, columns: np.ndarray | None) -> np.ndarray:
    return values if columns is None else np.take(values, columns, axis=-1)


def rotation_of(checkpoint: Checkpoint, plan: Plan, compensation: Compensation) -> Rotation:
    """What rotates `checkpoint` into the plan's basis."""
    assert plan.basis is not None
    norms = {(norm.line, norm.layer): norm for norm in norms_of(checkpoint, plan, compensation)}
    embedding = plan.basis * np.float32(embedding_scale(checkpoint.family, plan))
    return Rotation(checkpoint, plan, compensation, norms, embedding)
