"""A plan: which indices of the source survive. Everything that trims, masks or projects reads only this."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from minitron_cli.errors import MinitronError
from minitron_cli.spec.axes import AXES, FOLLOWING_AXES, SCOPE, SCORED_AXES
from minitron_cli.spec.scores import Scores
from minitron_cli.spec.shape import Shape, dense_shape

ORTHONORMAL = 1e-4  # float32 columns of a few thousand rows are so to about 1e-6


@dataclass(frozen=True, slots=True)
class Merge:
    """Which experts are averaged: arrays (target layer, source expert).

    `into` is the target expert that each is averaged into (-1: it is dropped), `share` its weight in the average.
    """

    into: np.ndarray
    share: np.ndarray


@dataclass(frozen=True, slots=True)
class Plan:
    """Indices into the source that survive, ascending; an axis that is not cut is absent from `kept`.

    An axis chosen anew in each layer has one row per *kept* layer: kept["ffn"] is (target layer, target ffn), and row i
    belongs to source layer kept["layer"][i]. `expert_ffn` is (target layer, target expert, target expert_ffn). The row
    of a layer that has no such axis means nothing.
    `basis` (source hidden, target hidden) replaces the kept hidden channels where directions of the residual stream are
    kept instead: orthonormal columns, each a direction. `merge` averages the experts that go into others. With `dense`
    the one expert of a layer that stays is the MLP of a dense model (see Family.dense), whose shape is `left`.
    """

    source: Shape
    target: Shape
    kept: Mapping[str, np.ndarray]
    basis: np.ndarray | None = None
    merge: Merge | None = None
    dense: bool = False

    def __post_init__(self) -> None:
        problems = plan_problems(self.source, self.target, self.kept, self.basis, self.merge, self.dense)
        assert not problems, "; ".join(problems)

    @property
    def left(self) -> Shape:
        """The shape of the model that comes out: the target, in the axes of a dense model where it becomes one."""
        return dense_shape(self.target) if self.dense else self.target

    def source_layer(self, layer: int) -> int:
        """Source index of a target layer."""
        return int(self.kept["layer"][layer]) if "layer" in self.kept else layer

    def source_expert(self, layer: int, expert: int) -> int:
        """Source index of an expert of a target layer."""
        return int(self.kept["expert"][layer, expert]) if "expert" in self.kept else expert

    def target_layer(self, layer: int) -> int | None:
        """Index that a source layer has in the target, None where it is dropped."""
        return _place(self.kept["layer"], layer) if "layer" in self.kept else layer

    def target_expert(self, layer: int, expert: int) -> int | None:
        """Index that a source expert has in a *target* layer, None where it is dropped."""
        return _place(self.kept["expert"][layer], expert) if "expert" in self.kept else expert

    def resolve(self, layer: int | None = None, expert: int | None = None) -> dict[str, np.ndarray]:
        """Kept indices as plain 1-D arrays for one target layer (and expert); what `axes.positions` takes."""
        at = {"layer": layer, "expert": expert}
        resolved = {}
        for axis, index in self.kept.items():
            place = tuple(at[scope] for scope in SCOPE.get(axis, ()))
            if None not in place:
                resolved[axis] = index[place]
        return resolved


def _place(kept: np.ndarray, index: int) -> int | None:
    place = int(np.searchsorted(kept, index))
    return place if place < len(kept) and kept[place] == index else None


def plan_problems(
    source: Shape,
    target: Shape,
    kept: Mapping[str, np.ndarray],
    basis: np.ndarray | None = None,
    merge: Merge | None = None,
    dense: bool = False,
) -> list[str]:
    """Why these kept indices (and directions) do not make `target` of `source`; empty when they do."""
    problems = [] if basis is None else _basis_problems(source, target, kept, basis)
    if dense and target.get("expert") != 1:
        problems.append(f"{target.get('expert')} experts a layer are not a dense MLP")
    free = {axis.name for axis in AXES if not axis.units} | ({"hidden"} if basis is not None else set())
    for axis in sorted({*source, *target, *kept}):
        if axis not in source or axis not in target:
            problems.append(f"{axis} is not an axis of both shapes")
        elif axis not in kept and source[axis] != target[axis] and axis not in free:
            problems.append(f"{axis} changes from {source[axis]} to {target[axis]} without kept indices")
    if not problems and target.kinds != _kinds_left(source, kept):
        problems.append("the layers of the target are of other kinds than those kept")
    if not problems:
        found = [_index_problem(source, target, axis, index) for axis, index in kept.items()]
        problems = [text for text in found if text]
    if not problems and merge is not None:
        problems = _merge_problems(source, target, kept, merge)
    return problems or _group_problems(source, target, kept)


def _kinds_left(source: Shape, kept: Mapping[str, np.ndarray]) -> tuple[tuple[str, ...], ...]:
    layers = kept["layer"] if "layer" in kept else range(source.get("layer"))
    return tuple(source.kinds[layer] for layer in layers if layer < source["layer"]) if source.kinds else ()


def _index_problem(source: Shape, target: Shape, axis: str, index: np.ndarray) -> str | None:
    expected = tuple(target[a] for a in (*SCOPE.get(axis, ()), axis))
    if index.shape != expected or not np.issubdtype(index.dtype, np.integer):
        return f"{axis}: kept indices are {index.dtype} of shape {index.shape}, not integers of shape {expected}"
    if index.size == 0 or index.min() < 0 or index.max() >= source[axis]:
        return f"{axis}: kept indices leave the range 0..{source[axis] - 1}"
    return None if (np.diff(index, axis=-1) > 0).all() else f"{axis}: kept indices do not ascend"


def _merge_problems(source: Shape, target: Shape, kept: Mapping[str, np.ndarray], merge: Merge) -> list[str]:
    wanted = (target["layer"], source.get("expert"))
    if "expert" not in kept or merge.into.shape != wanted or merge.share.shape != wanted:
        return [f"experts are merged by arrays {merge.into.shape} and {merge.share.shape}, not {wanted}"]
    if not np.issubdtype(merge.into.dtype, np.integer) or merge.into.min() < -1:
        return ["experts are merged into places that are not indices"]
    own = np.take_along_axis(merge.into, kept["expert"], axis=1)
    if merge.into.max() >= target["expert"] or (own != np.arange(target["expert"])).any():
        return ["an expert that stays is merged into another, or into none that stays"]
    return [] if (np.isfinite(merge.share) & (merge.share >= 0)).all() else ["shares of merged experts are not shares"]


def _basis_problems(source: Shape, target: Shape, kept: Mapping[str, np.ndarray], basis: np.ndarray) -> list[str]:
    wanted = (source["hidden"], target["hidden"])
    if "hidden" in kept or basis.shape != wanted or not np.isfinite(basis).all():
        return [f"directions of the residual stream are {basis.shape}, not finite numbers {wanted} in place of indices"]
    error = float(np.abs(basis.T @ basis - np.eye(wanted[1])).max())
    return [] if error < ORTHONORMAL else [f"directions of the residual stream are not orthonormal (by {error:.1g})"]


def _group_problems(source: Shape, target: Shape, kept: Mapping[str, np.ndarray]) -> list[str]:
    """The same number of units must stay in every kept group, and none outside."""
    return [
        text
        for axis, group in source.groups_of()
        if {axis, group} & kept.keys() and (text := _group_problem(axis, group, source, target, kept))
    ]


def _group_problem(axis: str, group: str, source: Shape, target: Shape, kept: Mapping[str, np.ndarray]) -> str | None:
    if target[axis] % target[group]:
        return f"{target[axis]} units of {axis} do not divide by {target[group]} of {group}"
    size, target_size = source[axis] // source[group], target[axis] // target[group]
    every = {a: np.broadcast_to(np.arange(source[a]), (target["layer"], source[a])) for a in (axis, group)}
    units, groups = (kept.get(a, every[a]) for a in (axis, group))
    left = [
        i for i in target.layers_of(axis) if not np.array_equal(units[i] // size, np.repeat(groups[i], target_size))
    ]
    return f"layers {left}: units of {axis} leave their {group} group" if left else None


def hidden_origin(plan: Plan) -> np.ndarray | None:
    """The target's hidden channels in those of the source: (source hidden, target hidden); None where none is cut."""
    if plan.basis is not None:
        return plan.basis
    return np.eye(plan.source["hidden"])[:, plan.kept["hidden"]] if "hidden" in plan.kept else None


def top_k(scores: np.ndarray, k: int) -> np.ndarray:
    """Ascending indices of the k largest along the last axis: (..., n) -> (..., k) int64. Ties keep the lower index."""
    order = np.argsort(-scores, axis=-1, kind="stable")[..., :k]
    return np.sort(order, axis=-1).astype(np.int64)


def from_scores(scores: Scores, source: Shape, target: Shape, layers: Sequence[int] | None = None) -> Plan:
    """Rank every cut axis by its scores and keep the best (Minitron, arXiv 2407.14679, section 2.3).

    `layers` fixes the layers to keep (ascending source indices) instead of ranking them. Neurons, heads and experts are
    ranked inside each layer; heads inside each KV group; hidden channels once for the whole network. Of every kind of
    layer at least one stays: without any the model would be another architecture.
    """
    kept: dict[str, np.ndarray] = {}
    if layers is None and target["layer"] != source["layer"]:
        kept["layer"] = _best_layers(scores.require("layer", source), source, target["layer"])
    elif layers is not None and len(layers) != source["layer"]:
        kept["layer"] = np.asarray(layers, dtype=np.int64)
        _require_kinds(source, kept["layer"])
    groups = dict(source.groups)
    for axis in (*SCORED_AXES, *FOLLOWING_AXES):
        if axis == "layer" or axis not in source or target[axis] == source[axis]:
            continue
        values = where_kept(scores.require(axis, source), axis, kept)
        if axis in groups:
            kept.update(_keep_grouped(values, axis, groups[axis], source, target))
        else:
            kept[axis] = top_k(values, target[axis])
    return Plan(source, target.of_layers(kept["layer"], source) if "layer" in kept else target, kept)


def _best_layers(scores: np.ndarray, source: Shape, count: int) -> np.ndarray:
    """Ascending indices of the layers with the highest scores, of those sets that hold a layer of every kind."""
    order = np.argsort(-scores, kind="stable").tolist()
    best: dict[tuple[str, ...], int] = {}
    for layer in order if source.kinds else []:
        best.setdefault(source.kinds[layer], layer)
    every, found = {kind for kinds in best for kind in kinds}, [order[:count]]
    # Layers are alike in few ways: of some of these the best layer stays, and after them the best of all.
    for some in (some for size in range(1, count + 1) for some in combinations(best, size)):
        if {kind for kinds in some for kind in kinds} == every:
            first = [best[kinds] for kinds in some]
            found.append([*first, *(layer for layer in order if layer not in first)][:count])
    kept = np.array(max(found[1:] or found, key=lambda layers: scores[layers].sum()), dtype=np.int64)
    _require_kinds(source, kept)
    return np.sort(kept)


def _require_kinds(source: Shape, layers: np.ndarray) -> None:
    left = {kind for layer in layers for kind in (source.kinds[layer] if source.kinds else ())}
    if gone := sorted({kind for kinds in source.kinds for kind in kinds} - left):
        raise MinitronError(
            f"no {' or '.join(gone)} layer would stay: without any, the model is of another architecture",
            "keep more layers, or name those that go with --drop-layers",
        )


def where_kept(values: np.ndarray, axis: str, kept: Mapping[str, np.ndarray]) -> np.ndarray:
    """The values of an axis in the layers and experts that stay: (scope, unit) -> (target scope, unit)."""
    scope = SCOPE.get(axis, ())
    if "layer" in scope and "layer" in kept:
        values = values[kept["layer"]]
    if "expert" in scope and "expert" in kept:
        values = np.take_along_axis(values, kept["expert"][:, :, None], axis=1)
    return values


def _keep_grouped(scores: np.ndarray, axis: str, group: str, source: Shape, target: Shape) -> dict[str, np.ndarray]:
    """Choose groups by the sum of their units' scores, then units inside each kept group: scores (layer, unit).

    Without an axis of groups every unit is a group of its own.
    """
    num_groups, kept_groups = source.get(group, source[axis]), target.get(group, target[axis])
    size, kept_size = source[axis] // num_groups, target[axis] // kept_groups
    grouped = scores.reshape(len(scores), num_groups, size)
    groups = top_k(grouped.sum(axis=-1), kept_groups)
    inside = top_k(np.take_along_axis(grouped, groups[:, :, None], axis=1), kept_size)
    kept = {axis: (groups[:, :, None] * size + inside).reshape(len(scores), -1)}
    return kept | ({group: groups} if group in source and kept_groups != num_groups else {})
