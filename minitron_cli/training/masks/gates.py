"""Which masks a cut needs, and the plan that they settle into."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import numpy as np

from minitron_cli.spec.axes import AXES, MASKED_AXES, SCOPE
from minitron_cli.spec.plan import Plan, top_k, where_kept
from minitron_cli.spec.scores import Scores
from minitron_cli.spec.shape import Shape


@dataclass(frozen=True, slots=True)
class Gate:
    """The masks of one axis: `scope` names the axes that its rows run over, `sizes` are theirs and the row's own.

    `keep` units of each row stay. Rows of layers that are not among `layers` have no such axis. Heads have a row for
    each KV group, so that every group keeps as many; that whole groups go is for the gate of "kv".
    """

    axis: str
    scope: tuple[str, ...]
    sizes: tuple[int, ...]
    keep: int
    layers: tuple[int, ...]

    @property
    def units(self) -> int:
        return self.sizes[-1]

    @property
    def target(self) -> float:
        """The share of units that is to be masked."""
        return 1 - self.keep / self.units


def gates_of(source: Shape, target: Shape) -> tuple[Gate, ...]:
    """One gate for every axis that gets smaller; where heads go with their KV groups, only the groups have one."""
    groups, found = dict(source.groups_of()), []
    for axis in (one.name for one in MASKED_AXES if one.name in source):
        scope, size, keep = SCOPE.get(axis, ()), source[axis], target[axis]
        if group := groups.get(axis):
            scope, size, keep = (*scope, group), size // source[group], keep // target[group]
        if keep < size:
            sizes = (*(source[one] for one in scope), size)
            found.append(Gate(axis, scope, sizes, keep, tuple(source.layers_of(axis))))
    return tuple(found)


def plan_of(gates: tuple[Gate, ...], source: Shape, target: Shape, values: Mapping[str, np.ndarray]) -> Plan:
    """The plan that keeps the largest `values` (by axis, of a gate's sizes) of each row."""
    chosen = {gate.axis: top_k(values[gate.axis], gate.keep) for gate in gates}
    kept: dict[str, np.ndarray] = {}
    for axis in (one.name for one in AXES if one.name in source):
        group = dict(source.groups_of()).get(axis)
        if group and {axis, group} & chosen.keys():
            kept[axis] = _grouped(axis, group, chosen, source, kept.get("layer"))
        elif axis in chosen:
            kept[axis] = where_kept(chosen[axis], axis, kept)
    return Plan(source, target, kept)


def _grouped(
    axis: str, group: str, chosen: Mapping[str, np.ndarray], source: Shape, layers: np.ndarray | None
) -> np.ndarray:
    """Kept units of all kept groups, numbered over the whole layer: (target layer, target unit)."""
    rows, size = np.arange(source["layer"]) if layers is None else layers, source[axis] // source[group]
    every = np.broadcast_to(np.arange(source[group]), (source["layer"], source[group]))
    groups = chosen.get(group, every)[rows]
    inside = np.broadcast_to(np.arange(size), (len(rows), source[group], size))
    inside = chosen[axis][rows] if axis in chosen else inside
    inside = np.take_along_axis(inside, groups[:, :, None], axis=1)
    return (groups[:, :, None] * size + inside).reshape(len(rows), -1)


def ranks(gate: Gate, scores: Scores, source: Shape) -> np.ndarray:
    """How a gate's units rank by scores, in each row from 0 (the best) to 1 (the last), of the gate's sizes.

    A KV group is worth the sum of its heads.
    """
    unit = next((one for one, group in source.groups_of() if group == gate.axis), gate.axis)
    values = scores.require(unit, source)
    values = values.reshape(*gate.sizes, prod(values.shape) // prod(gate.sizes)).sum(-1)
    order = np.argsort(np.argsort(-values, axis=-1, kind="stable"), axis=-1, kind="stable")
    return order / (gate.units - 1)
