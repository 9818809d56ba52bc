"""Compensated trimming: a linear map is refitted by least squares to the inputs that it keeps.

For a map W whose inputs x = (x_K, x_D) lose x_D, the map of x_K with the least square error on calibration tokens is

    W' = W_K + W_D T,   T = C_DK (C_KK + eps diag C_KK)^-1,   C = E[x x^T]   (W C_:K C_KK^-1 for eps = 0)

T, the regression of the dropped inputs on the kept ones, does not depend on W: it is solved once for all the maps that
read the same input. The ridge is relative to each input's own mean square, so that the result does not depend on the
units' scales, and pulls T towards 0, which is plain trimming; with everything kept nothing changes at all. The Gram
matrices are those of the unpruned model. An input with fewer tokens than kept units, such as that of an expert that is
seldom chosen, gets the ridge that is best on tokens which T was not solved on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from minitron_cli.checkpoint.bits import from_bits, to_bits
from minitron_cli.checkpoint.moments_file import Input, Moments, moments_digest, open_moments
from minitron_cli.errors import MinitronError
from minitron_cli.prune.reconstruction import Error, Place, overfit, summary
from minitron_cli.spec.axes import is_embedding, reading_dim, reads
from minitron_cli.spec.family import Match

METHODS = ("none", "least-squares")
SELECT = ("scores", "residual")  # what decides which neurons stay (see `select`)
RIDGE = 1e-2
DOUBLE = 2048  # up to this width products of Gram matrices are float64
# Tried by `auto`, judged on the half of the samples that T was not solved on; infinity is plain trimming.
GRID = (1e-4, 1e-3, 1e-2, 1e-1, np.inf)
_HELD = 4  # solutions held: the readers of one input are not next to each other on disk
_FLOOR = 1e-12  # of the mean diagonal, for inputs that are always 0


@dataclass(slots=True)
class Compensation:
    """Gram matrices, the relative ridge (None: the best of GRID by held-out error), and solutions in use."""

    moments: Moments
    ridge: float | None = RIDGE
    chosen: dict[str, float | None] = field(default_factory=dict)  # by held-out error; None: plain trimming
    errors: dict[Place, Error] = field(default_factory=dict)  # of what was solved so far
    _held: dict[tuple[Any, ...], np.ndarray] = field(default_factory=dict)

    def refit_of(
        self, match: Match, expert: int | None, keep: Sequence[np.ndarray | None], shape: Sequence[int]
    ) -> "Refit | None":
        """How a matrix, or its piece of one `expert`, is refitted when `keep` stays of its dimensions, or None."""
        dim = reading_dim(match.weight)
        if dim is None or is_embedding(match.weight):
            return None
        dim -= len(match.weight.dims) - len(shape)
        kept = keep[dim]
        if kept is None or len(kept) == shape[dim]:
            return None
        one = self.moments.of(match.name, expert)
        if one is None:
            raise MinitronError(
                f"there is no Gram matrix of the {' x '.join(reads(match.weight))} that {match.name} reads",
                "measure again with --second-moments, or leave that axis uncut",
            )
        return Refit(self, one, kept, np.setdiff1d(np.arange(shape[dim]), kept), transposed=dim == 0)

    def regression(self, one: Input, kept: np.ndarray, dropped: np.ndarray, dtype: type) -> np.ndarray:
        """T (dropped, kept), solved in float64 and held in `dtype`."""
        key = (one.file, one.tensor, kept.tobytes(), dtype)
        if key not in self._held:
            while len(self._held) >= _HELD:
                del self._held[next(iter(self._held))]
            ridge, few = self.ridge, sum(one.tokens) < len(kept)
            if ridge is None or few:
                ridge = best_ridge(self.moments.read(one), kept, dropped, np.inf if few else RIDGE)
                self.chosen[f"{one.file}:{one.tensor}"] = None if np.isinf(ridge) else ridge
            moment = self.moments.mean(one)
            solved = regression(moment, kept, dropped, ridge)
            left = unexplained(moment, kept, dropped, ridge, solved) * overfit(sum(one.tokens), len(kept), ridge)
            self.errors[_name(one), one.layer, one.expert] = Error(left, float(len(dropped)))
            self._held[key] = solved.astype(dtype)
        return self._held[key]


def _name(one: Input) -> str:
    """The axis of an input; hidden channels are read by attention and by the MLP: "hidden (mlp)"."""
    if one.axis != "hidden" or one.layer is None:
        return one.axis if one.layer is not None else "logits"
    return f"hidden ({one.readers[0].partition(f'.{one.layer}.')[2].partition('.')[0]})"


@dataclass(frozen=True, slots=True)
class Refit:
    """Rows of a weight as they are stored, with all inputs -> compensated rows, with the kept ones.

    A transposed weight (input, output) has its inputs along the rows, of which it then needs all at once.
    """

    by: Compensation
    input: Input
    kept: np.ndarray
    dropped: np.ndarray
    transposed: bool = False

    @property
    def whole(self) -> bool:
        """Whether a piece has to come in one block."""
        return self.transposed

    def apply(self, raw: np.ndarray, dtype: str, columns: np.ndarray | None) -> np.ndarray:
        """Bits in, bits out, rounded once; `columns` are those of the piece that stay (None: all)."""
        if not self.transposed:
            return to_bits(self.values(raw, dtype), dtype)
        raw = raw if columns is None else np.take(raw, columns, axis=1)
        return to_bits(np.ascontiguousarray(self.values(raw.T, dtype).T), dtype)

    def values(self, raw: np.ndarray, dtype: str) -> np.ndarray:
        """Compensated rows (output, kept) of (output, input) in float32, float64 where that is stored."""
        values = from_bits(raw, dtype)
        wide = np.float64 if dtype == "F64" else np.float32
        values = values.astype(wide, copy=False)
        refitted = np.take(values, self.dropped, axis=1) @ self.by.regression(self.input, self.kept, self.dropped, wide)
        refitted += np.take(values, self.kept, axis=1)
        return refitted


def regression(moment: np.ndarray, kept: np.ndarray, dropped: np.ndarray, ridge: float) -> np.ndarray:
    """Solve for T (dropped, kept) by Cholesky: moment (n, n) float64."""
    if np.isinf(ridge) or not len(dropped) or not moment.any():
        return np.zeros((len(dropped), len(kept)))
    import torch

    normal = moment[np.ix_(kept, kept)].copy()
    diagonal = np.diagonal(normal).copy()
    floor = _FLOOR * max(float(diagonal.mean()), np.finfo(np.float64).tiny)
    normal[np.diag_indices_from(normal)] += np.maximum(ridge * diagonal, floor)
    factor, failed = torch.linalg.cholesky_ex(torch.from_numpy(normal))
    if int(failed):
        raise MinitronError(
            f"the Gram matrix is not positive definite with a ridge of {ridge:g}",
            "give a larger --ridge, or measure with --dtype float32 and more --samples",
        )
    return torch.cholesky_solve(torch.from_numpy(moment[np.ix_(kept, dropped)]), factor).numpy().T


def unexplained(moment: np.ndarray, kept: np.ndarray, dropped: np.ndarray, ridge: float, solved: np.ndarray) -> float:
    """`residual` of the solution T of this same moment and ridge, without another product of matrices."""
    own, penalty = np.diagonal(moment)[dropped], np.diagonal(moment)[kept] * (0.0 if np.isinf(ridge) else ridge)
    left = own - (solved * moment[np.ix_(dropped, kept)]).sum(1) - np.square(solved) @ penalty
    return float((left / np.maximum(own, np.finfo(np.float64).tiny)).sum())


def residual(moment: np.ndarray, kept: np.ndarray, dropped: np.ndarray, solved: np.ndarray) -> float:
    """E |x_D - T x_K|^2, each input relative to its own mean square: what is lost of the dropped ones.

    One that is always 0 here counts relative to the mean of them.
    """
    across = moment[np.ix_(dropped, kept)]
    own = np.diagonal(moment)[dropped]
    lost = own - 2 * (solved * across).sum(1) + ((solved @ moment[np.ix_(kept, kept)]) * solved).sum(1)
    tiny = np.finfo(np.float64).tiny
    return float((lost / np.where(own > tiny, own, max(float(own.mean()), tiny))).sum())


def best_ridge(halves: np.ndarray, kept: np.ndarray, dropped: np.ndarray, otherwise: float = RIDGE) -> float:
    """The ridge of GRID with the least error on the half that T was not solved on: halves (2, n, n).

    `otherwise` where one half has no tokens.
    """
    if not halves.any((1, 2)).all():
        return otherwise
    errors = [
        sum(residual(halves[1 - h], kept, dropped, regression(halves[h], kept, dropped, ridge)) for h in (0, 1))
        for ridge in GRID
    ]
    return GRID[int(np.argmin(errors))]


def check_request(method: str, ridge: str, select: str = "scores", rotate: bool = False) -> None:
    """Refuse what does not go together, before anything is read."""
    if method not in METHODS:
        raise MinitronError(f"--compensate {method!r} is unknown", f"one of {', '.join(METHODS)}")
    if select not in SELECT:
        raise MinitronError(f"--select {select!r} is unknown", f"one of {', '.join(SELECT)}")
    parse_ridge(ridge)
    if method == "none" and select != "scores":
        raise MinitronError(
            f"--select {select} chooses by the error that compensation leaves, and there is none",
            "add --compensate least-squares",
        )
    if method == "none" and rotate:
        raise MinitronError(
            "--rotate refits what reads the residual stream by input Gram matrices", "add --compensate least-squares"
        )


def parse_ridge(text: str) -> float | None:
    """ "1e-2" -> 0.01, "auto" -> None."""
    try:
        ridge = None if text == "auto" else float(text)
    except ValueError:
        ridge = -1.0
    if ridge is not None and not 0 <= ridge < np.inf:
        raise MinitronError(f"--ridge {text} is not a ridge", "give auto, or a number from 0 up, such as 1e-2")
    return ridge


def open_compensation(path: Path, ridge: float | None) -> Compensation:
    """Compensation by the moments in a directory."""
    return Compensation(open_moments(path), ridge)


def record(by: Compensation | None) -> dict[str, Any] | None:
    """How minitron.json describes the compensation: method, ridge, and the Gram matrices by digest."""
    if by is None:
        return None
    return {
        "method": METHODS[1],
        "ridge": "auto" if by.ridge is None else by.ridge,
        "moments": {"name": str(by.moments.path), "sha256": moments_digest(by.moments.path)},
        "identity": dict(by.moments.identity),
        "reconstruction": summary(by.errors),
        **({"chosen": dict(sorted(by.chosen.items()))} if by.chosen else {}),
    }


def from_record(manifest: Mapping[str, Any], moments: Path | None) -> Compensation | None:
    """The compensation that a pruned model's manifest records, to derive the weights again."""
    recorded = manifest.get("compensation")
    if not recorded:
        return None
    path = moments or Path(recorded["moments"]["name"])
    found = open_compensation(path, None if recorded["ridge"] == "auto" else recorded["ridge"])
    if moments_digest(path) != recorded["moments"]["sha256"]:
        raise MinitronError(
            f"{path} does not hold the input Gram matrices that the model was compensated by (sha256 differs)",
            "give the right ones with --moments, or leave --source out",
        )
    return found
