"""Which neurons stay, chosen by what is lost after compensation, not by how active they are.

Backward elimination: of the neurons that are left, those are dropped that cost least once the others have taken over
what they can. With W the down projection as refitted so far and P the inverse of the Gram matrix of the neurons left,
dropping neuron q adds |W_q|^2 / P_qq to the squared error of the projection's output (Optimal Brain Surgeon, for a
column). At most ROUNDS rounds, each dropping several. P is not updated as a whole: with the factors V of what was
dropped so far it is P_0 - V V^T, of which a round needs the diagonal and the columns that it drops.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import numpy as np

from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.checkpoint.tensors import read_tensor
from minitron_cli.errors import MinitronError
from minitron_cli.prune.compensate import DOUBLE, RIDGE, Compensation
from minitron_cli.prune.compensation_cost import CHOSEN
from minitron_cli.spec.family import Match
from minitron_cli.spec.plan import Plan

ROUNDS = 64


def by_residual(checkpoint: Checkpoint, plan: Plan, compensation: Compensation) -> Plan:
    """The plan with its neurons chosen by residual error, in the layers that have them; all other axes as they are."""
    chosen = {axis: np.array(plan.kept[axis]) for axis in CHOSEN if axis in plan.kept and _readers(checkpoint, axis)}
    for axis, rows in chosen.items():
        layers = plan.target.layers_of(axis)
        one = partial(_of_layer, checkpoint, plan, compensation, axis)
        rows[list(layers)] = _over_layers(one, layers, plan.source[axis])
    if not chosen:
        raise MinitronError("--select residual chooses neurons, and none are cut", "add --ffn N, or leave it out")
    return replace(plan, kept={**plan.kept, **chosen})


def _readers(checkpoint: Checkpoint, axis: str) -> list[Match]:
    """The matrices that read this axis and no other, those of experts not among them."""
    every = (m for m in checkpoint.matches.values() if m.expert is None and len(m.weight.dims) == 2)
    return [m for m in every if m.weight.dims[-1] == ((axis,),)]


def _over_layers(one: Callable[[int], np.ndarray], layers: Sequence[int], width: int) -> list[np.ndarray]:
    """`one` of each layer; several at once, a thread each, where matrices are too narrow to fill the cores."""
    import torch

    threads = torch.get_num_threads()
    if width > DOUBLE or threads == 1:
        return [one(layer) for layer in layers]
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(one, layers))
    finally:
        torch.set_num_threads(threads)


def _of_layer(checkpoint: Checkpoint, plan: Plan, by: Compensation, axis: str, layer: int) -> np.ndarray:
    source = plan.source_layer(layer)
    readers = [m.name for m in _readers(checkpoint, axis) if m.layer == source]
    found = [one for one in map(by.moments.of, readers) if one is not None]
    if len(found) != len(readers) or not readers:
        raise MinitronError(
            f"there is no Gram matrix of {axis} in layer {source}", "measure again with --second-moments"
        )
    weight = np.concatenate([read_tensor(checkpoint.tensors[name]).float().numpy() for name in readers])
    ridge = by.ridge if by.ridge else RIDGE
    return eliminate(weight, by.moments.mean(found[0]), plan.target[axis], ridge)


def eliminate(weight: np.ndarray, moment: np.ndarray, stay: int, ridge: float) -> np.ndarray:
    """Indices of the `stay` inputs that remain, ascending: weight (out, n), moment (n, n).

    In float32 where the Gram matrix is wide, unless it is too ill-conditioned for that.
    """
    for dtype in (np.float32, np.float64) if len(moment) > DOUBLE else (np.float64,):
        # Costs do not depend on the units' scales, so that every input gets a mean square of 1.
        scale = np.sqrt(np.maximum(np.diagonal(moment), 1e-12 * max(np.diagonal(moment).mean(), np.finfo(float).tiny)))
        correlation = (moment / scale[:, None] / scale).astype(dtype)
        correlation[np.diag_indices_from(correlation)] += ridge
        kept = _eliminate((weight * scale).astype(dtype), correlation, stay)
        if kept is not None:
            return kept
    raise MinitronError(
        f"the Gram matrix is not positive definite with a ridge of {ridge:g}", "give a larger --ridge, or more samples"
    )


def _eliminate(columns: np.ndarray, matrix: np.ndarray, stay: int) -> np.ndarray | None:
    """The elimination itself, None where a factor fails: columns (out, n), matrix (n, n), which is overwritten."""
    import torch

    weight, total = torch.from_numpy(columns), len(matrix)
    factor, failed = torch.linalg.cholesky_ex(torch.from_numpy(matrix))
    if failed:
        return None
    inverse = torch.cholesky_inverse(factor)
    diagonal, left = inverse.diagonal().clone(), torch.ones(total, dtype=torch.bool)
    dropped, step = inverse.new_empty((total, total - stay)), -(-(total - stay) // ROUNDS)
    for begin in range(0, total - stay, step):
        end = min(begin + step, total - stay)
        cost = torch.where(left, weight.square().sum(0) / diagonal, torch.inf)
        go = cost.argsort(stable=True)[: end - begin]
        own = inverse[go].T - dropped[:, :begin] @ dropped[go, :begin].T
        factor, failed = torch.linalg.cholesky_ex(own[go])
        if failed:
            return None
        part = torch.linalg.solve_triangular(factor.T, own, upper=True, left=False, out=dropped[:, begin:end])
        diagonal -= part.square().sum(1)
        weight -= torch.linalg.solve_triangular(factor.T, weight[:, go], upper=True, left=False) @ part.T
        left[go] = False
        if not (diagonal[left] > 0).all():
            return None
    return left.nonzero().flatten().numpy()
