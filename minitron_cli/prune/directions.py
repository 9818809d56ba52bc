"""Choose the directions of the residual stream to keep, and reconstruct the stream from them.

With x^ = x / rms(x), what an RMS norm makes of the stream before its weights, and M = E[x^ x^T], taken from the input
Gram matrices after each norm: the basis Q holds what readers see most of, the leading eigenvectors of the sum over
norms of S^1/2 G S^1/2, with S the mean of M over the norms and G the Gram matrices of the readers' W diag(w), each
reader scaled to an output of mean square 1. Of a head that is tied to the embedding E the logits leave by the same
directions: with G = E^T E and the Gram matrix Y after the final norm, Y^1/2 G Y^1/2 counts as much as all the rest.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod, sqrt
from typing import Any

import numpy as np

from minitron_cli.checkpoint.bits import from_bits
from minitron_cli.checkpoint.headers import TensorInfo
from minitron_cli.checkpoint.moments_file import Input
from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.checkpoint.values import read_bits
from minitron_cli.errors import MinitronError
from minitron_cli.prune.compensate import DOUBLE, Compensation
from minitron_cli.prune.reconstruction import Error
from minitron_cli.prune.tied import TiedHead
from minitron_cli.spec.axes import is_embedding, is_head
from minitron_cli.spec.family import Family, Match
from minitron_cli.spec.plan import Plan

_SAYS = 1e-3  # the cosine between 1 / w and a norm's bias below which their product is rounding
_HINT = "leave --rotate out: channels can be cut in any family"
_BLOCK = 64 << 20  # bytes of a weight that become float32 at once


@dataclass(frozen=True, slots=True)
class Norm:
    """A norm of the source: its line and layer, its effective weights w (hidden,), and what follows it.

    A LayerNorm is `centred`; `bias` (hidden,) is its bias, where it has one.
    """

    line: str
    layer: int | None
    weight: np.ndarray
    input: Input
    centred: bool = False
    bias: np.ndarray | None = None

    @property
    def size(self) -> float:
        """The root mean square of the weights."""
        return float(np.sqrt(np.mean(np.square(self.weight))))


def by_directions(checkpoint: Checkpoint, plan: Plan, hidden: int, compensation: Compensation) -> Plan:
    """The plan with `hidden` directions of the residual stream; `plan` keeps all channels."""
    check_rotation(checkpoint.family, checkpoint.config)
    assert "hidden" not in plan.kept, "channels and directions of one stream"
    norms = list(norms_of(checkpoint, plan, compensation))
    tied = tied_head(checkpoint, norms[-1], compensation)
    basis = leading(checkpoint, norms, hidden, compensation, tied)
    if checkpoint.family.centred:
        basis = with_mean(basis, tied)
    elif tied is not None:
        basis = basis @ np.linalg.eigh(tied.fitted(basis))[1]
    return replace(plan, target=plan.target.with_alone(hidden=hidden), basis=basis.astype(np.float32))


def tied_head(checkpoint: Checkpoint, final: Norm, by: Compensation) -> TiedHead | None:
    """What the head after the `final` norm is fitted to where it is the embedding, None where it is not."""
    matches = checkpoint.matches.values()
    if any(is_head(match.weight) for match in matches):
        return None
    embedding = next(match for match in matches if is_embedding(match.weight))
    gram = gram_of(checkpoint.tensors[embedding.name])
    return TiedHead(gram, final.weight, normalised(final, by), final.centred, final.bias)


def check_rotation(family: Family, config: Mapping[str, Any], cut: bool = True) -> None:
    """Refuse a model whose residual stream cannot be rotated, and a stream of which nothing is `cut`."""
    if not cut:
        raise MinitronError("--rotate says how the hidden axis is cut, and it is not", "add --hidden, or leave it out")
    if not family.norms:
        raise MinitronError(
            f"{family.name} models cannot be cut along directions: {family.unrotated}",
            _HINT,
        )
    there = {weight.name for weight in family.expected(config)}
    for weight in family.expected(config):
        line = family.norm_of(weight)
        if line is not None and line not in there:
            raise MinitronError(f"{weight.name} reads the residual stream after a norm other than {line}", _HINT)


def leading(
    checkpoint: Checkpoint, norms: list[Norm], hidden: int, by: Compensation, tied: TiedHead | None = None
) -> np.ndarray:
    """Q (source hidden, hidden) float64: what the readers see most of, most of it first.

    Where norms are centred one column less, none of which has a part in the mean over channels.
    """
    mean = np.zeros((len(norms[0].weight),) * 2)
    seen = np.zeros_like(mean)
    for norm in norms:
        moment = normalised(norm, by)
        mean += moment / np.trace(moment)
        readers = readers_of(checkpoint, norm)
        for match in readers:
            gram = gram_of(checkpoint.tensors[match.name]) * np.outer(norm.weight, norm.weight)
            seen += gram / (np.sum(gram * moment) * len(readers))
    wanted = outputs(mean, seen)
    if tied is not None:  # logits leave by the embedding's rows: what they need counts as much as all reading
        wanted += outputs(tied.read_by_rows(), tied.embedding)
    if norms[0].centred:  # no reader sees the mean: here it is made what they see least of
        wanted = centred(wanted) - np.trace(wanted) / len(wanted)
        hidden -= 1
    return np.linalg.eigh(wanted)[1][:, ::-1][:, :hidden]


def with_mean(directions: np.ndarray, tied: TiedHead | None) -> np.ndarray:
    """Q (n, k + 1) of k directions (n, k) without a part in the mean over channels, and the mean, for LayerNorms.

    Q takes the direction (1, .., 1) of the stream to that of the student's, in which the norms of both see nothing: as
    Q 1 / sqrt(k + 1) = 1 / sqrt(n), what the student's norm is given is Q^T x without its mean, as without the mean of
    x. Else every basis serves; that of a reflection keeps directions close to channels. A tied head decides the basis
    of the directions (see `tied`); with all of them the channels are already exact.
    """
    n, kept = len(directions), directions.shape[1] + 1
    if tied is not None and kept == n:
        return np.eye(n)
    if tied is not None:
        directions = directions @ np.linalg.eigh(tied.fitted(directions))[1]
    return np.column_stack([directions, mean_of(n)]) @ reflection(kept)


def reflection(n: int) -> np.ndarray:
    """The symmetric orthogonal matrix (n, n) whose last column is `mean_of(n)`, and which is as near to 1 as can be."""
    across = mean_of(n)
    across[-1] -= 1
    length = across @ across
    return np.eye(n) - 2 * np.outer(across, across) / length if length else np.eye(n)


def mean_of(n: int) -> np.ndarray:
    """The direction of the mean over n channels, of length 1: (n,)."""
    return np.full(n, 1 / sqrt(n))


def centred(matrix: np.ndarray) -> np.ndarray:
    """A symmetric matrix (n, n) without the direction of the mean."""
    without = matrix - matrix.mean(axis=0)
    return without - without.mean(axis=1, keepdims=True)


def outputs(moment: np.ndarray, gram: np.ndarray) -> np.ndarray:
    """M^1/2 G M^1/2 of trace 1, for maps of Gram matrix G that read a stream of moment M: (hidden, hidden) each."""
    values, vectors = np.linalg.eigh(moment)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    found = root @ gram @ root
    return found / np.trace(found)


def readers_of(checkpoint: Checkpoint, norm: Norm) -> list[Match]:
    """Everything that reads the stream after a norm; a tied head is the embedding."""
    every, family = checkpoint.matches.values(), checkpoint.family
    after = [m for m in every if m.layer == norm.layer and family.norm_of(m.weight) == norm.line]
    return after or [m for m in every if is_embedding(m.weight)]


def gram_of(info: TensorInfo) -> np.ndarray:
    """W^T W of a weight, all dimensions but the last as rows: (last, last) float64."""
    gram = np.zeros((info.shape[-1],) * 2)
    for block in blocks(info):
        gram += block.T @ block
    return gram


def normalised(norm: Norm, by: Compensation) -> np.ndarray:
    """E[x^ x^T] in front of a norm's weights: (hidden, hidden) float64; 0 for channels that the weights hide."""
    inverse = np.divide(1.0, norm.weight, out=np.zeros_like(norm.weight), where=norm.weight != 0)
    moment = by.moments.mean(norm.input)
    if norm.bias is not None:
        both = np.outer(mean_output(moment, inverse, norm.bias), norm.bias)
        moment = moment - both - both.T + np.outer(norm.bias, norm.bias)
    moment = moment * np.outer(inverse, inverse)
    return centred(moment) if norm.centred else moment


def mean_output(moment: np.ndarray, inverse: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """E[y] of y = w x^ + b, from E[y y^T], 1 / w and b: (n,).

    A LayerNorm's x^ has the sum 0, so y / w has that of b / w, for every token: E[y y^T] (1 / w) = E[y] sum(b / w).
    Where the sum or some w are nearly 0 that cannot be solved, and the mean of x^ is taken to be 0.
    """
    total = inverse @ bias
    if not inverse.all() or abs(total) <= _SAYS * np.linalg.norm(inverse) * np.linalg.norm(bias):
        return bias
    return moment @ inverse / total


def scale_of(moment: np.ndarray, basis: np.ndarray) -> float:
    """How much larger x^ is than the student's normalised stream, which has mean square 1 over fewer numbers."""
    share = float(np.sum((moment @ basis) * basis) / np.trace(moment))
    return sqrt(share * len(moment) / basis.shape[1])


def least_squares_map(moment: np.ndarray, basis: np.ndarray, ridge: float) -> tuple[np.ndarray, Error]:
    """F, the best map from z = Q^T x^ to x^, and its error: moment (n, n), basis (n, k) -> (n, k) float64.

    F = Q + (M Q - Q Q^T M Q) (Q^T M Q + ridge diag)^-1: the ridge pulls towards Q, which loses nothing of what z holds.
    """
    wide = np.float64 if len(moment) <= DOUBLE else np.float32
    basis = basis.astype(wide)
    across = moment.astype(wide) @ basis
    inner = basis.T @ across
    outside = (across - basis @ inner).astype(np.float64)
    ridged = inner.astype(np.float64)
    diagonal = np.diagonal(ridged).copy()
    ridged[np.diag_indices_from(ridged)] += np.maximum(ridge * diagonal, 1e-12 * diagonal.mean())
    solved = basis + np.linalg.solve(ridged, outside.T).T
    energy = np.sort(np.diagonal(moment))
    left = energy.sum() - np.sum((2 * across - solved.astype(wide) @ inner) * solved)
    return solved, Error(float(left), float(energy[: len(moment) - basis.shape[1]].sum()))


def norms_of(checkpoint: Checkpoint, plan: Plan, by: Compensation) -> Iterator[Norm]:
    """The norms that read the stream in the layers that stay, the final one last."""
    check_rotation(checkpoint.family, checkpoint.config)
    for match in sorted(checkpoint.matches.values(), key=lambda match: match.layer is None):
        kept = match.layer is None or plan.target_layer(match.layer) is not None
        if match.weight.name not in checkpoint.family.norms or not kept:
            continue
        weight = next(blocks(checkpoint.tensors[match.name])).reshape(-1) + checkpoint.family.norm_offset
        bias = checkpoint.tensors.get(bias_of(match.name))
        yield Norm(
            match.weight.name,
            match.layer,
            weight,
            _input(checkpoint, match, by),
            checkpoint.family.centred,
            next(blocks(bias)).reshape(-1).astype(np.float64) if bias is not None else None,
        )


def bias_of(norm: str) -> str:
    """What the bias beside a norm's weights is called, where there is one."""
    return norm.removesuffix("weight") + "bias"


def _input(checkpoint: Checkpoint, norm: Match, by: Compensation) -> Input:
    """The moments of what a norm gives: those of any of its readers; outside of the layers there is but one."""
    every, family = checkpoint.matches.values(), checkpoint.family
    after = {m.name for m in every if m.layer == norm.layer and family.norm_of(m.weight) == norm.weight.name}
    for one in by.moments.inputs:
        if one.axis == "hidden" and one.layer == norm.layer and (norm.layer is None or after & set(one.readers)):
            return one
    raise MinitronError(f"there is no Gram matrix of what {norm.name} gives", "measure again with --second-moments")


def blocks(info: TensorInfo) -> Iterator[np.ndarray]:
    """A weight in blocks of whole rows, all dimensions but the last as rows: (row, last) float32 (or float64)."""
    width = info.shape[-1]
    rows, step = prod(info.shape[:-1]), max(1, _BLOCK // (4 * width))
    for first in range(0, rows, step):
        count = min(step, rows - first) * width
        values = from_bits(read_bits(info, first * width, count).reshape(-1, width), info.dtype)
        yield values if info.dtype == "F64" else values.astype(np.float32, copy=False)
