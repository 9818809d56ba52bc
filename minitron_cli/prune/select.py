"""Which neurons stay, chosen by what is lost after compensation, not by how active they are.

Backward elimination: of the neurons that are left, those go that cost least once the others have taken over what they
can. With W the down projection as refitted so far and P the inverse of the second moments of the neurons left, dropping
neuron q adds |W_q|^2 / P_qq to the squared error of the projection's output (Optimal Brain Surgeon, for a column), and
W and P follow by one update. At most ROUNDS rounds, each dropping several: all of it is matrix products.
"""

from dataclasses import replace

import numpy as np

from minitron_cli.checkpoint.headers import ITEM_BYTES, TensorInfo
from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.errors import MinitronError
from minitron_cli.prune.compensate import RIDGE, Compensation
from minitron_cli.prune.fold_cost import CHOSEN
from minitron_cli.prune.repairs import from_bits
from minitron_cli.spec.plan import Plan

ROUNDS = 64


def by_residual(checkpoint: Checkpoint, plan: Plan, compensation: Compensation) -> Plan:
    """The plan with its neurons chosen by residual error; hidden channels, heads and layers stay as they are."""
    kept = dict(plan.kept)
    for axis in CHOSEN:
        if axis in kept and kept[axis].shape[-1] < plan.source[axis]:
            kept[axis] = np.stack([_of_layer(checkpoint, plan, compensation, axis, i) for i in range(len(kept[axis]))])
    if all(kept[axis] is plan.kept[axis] for axis in kept):
        raise MinitronError("--select residual chooses neurons, and none are cut", "add --ffn N, or leave it out")
    return replace(plan, kept=kept)


def _of_layer(checkpoint: Checkpoint, plan: Plan, by: Compensation, axis: str, layer: int) -> np.ndarray:
    source = plan.source_layer(layer)
    readers = [
        m.name
        for m in checkpoint.matches.values()
        if m.layer == source and m.expert is None and len(m.weight.dims) == 2 and m.weight.dims[-1] == ((axis,),)
    ]
    found = [one for one in map(by.moments.of, readers) if one is not None]
    if len(found) != len(readers) or not readers:
        raise MinitronError(
            f"there are no second moments of {axis} in layer {source}", "measure again with --second-moments"
        )
    weight = np.concatenate([_read(checkpoint.tensors[name]) for name in readers])
    ridge = by.ridge if by.ridge else RIDGE
    return eliminate(weight, by.moments.mean(found[0]), plan.target[axis], ridge)


def _read(info: TensorInfo) -> np.ndarray:
    """A weight as float64."""
    item = ITEM_BYTES[info.dtype]
    raw = np.fromfile(info.file, f"u{item}", info.num_bytes // item, offset=info.begin)
    return from_bits(raw.reshape(info.shape), info.dtype).astype(np.float64)


def eliminate(weight: np.ndarray, moment: np.ndarray, stay: int, ridge: float) -> np.ndarray:
    """Indices of the `stay` inputs that remain, ascending: weight (out, n), moment (n, n), both float64."""
    diagonal = np.diagonal(moment)
    ridged = moment + np.diag(ridge * np.maximum(diagonal, 1e-12 * max(diagonal.mean(), np.finfo(float).tiny)))
    inverse, weight, left = _inverse(ridged), weight.copy(), np.arange(len(moment))
    step = -(-(len(left) - stay) // ROUNDS)
    while len(left) > stay:
        cost = np.square(weight).sum(0) / np.diagonal(inverse)
        order = np.argsort(cost, kind="stable")
        go = np.sort(order[: min(step, len(left) - stay)])
        rest = np.setdiff1d(np.arange(len(left)), go)
        taken = np.linalg.solve(inverse[np.ix_(go, go)], inverse[np.ix_(go, rest)])
        weight = weight[:, rest] - weight[:, go] @ taken
        inverse = inverse[np.ix_(rest, rest)] - inverse[np.ix_(rest, go)] @ taken
        left = left[rest]
    return left


def _inverse(matrix: np.ndarray) -> np.ndarray:
    """Of a positive definite matrix, by Cholesky: half the work of a general one."""
    import torch

    return torch.cholesky_inverse(torch.linalg.cholesky(torch.from_numpy(matrix))).numpy()
