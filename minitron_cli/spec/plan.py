"""A plan: which indices of the source survive. Everything that trims, masks or projects reads only this."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from minitron_cli.spec.axes import SCOPE
from minitron_cli.spec.scores import Scores
from minitron_cli.spec.shape import Shape


@dataclass(frozen=True, slots=True)
class Plan:
    """Indices into the source that survive, ascending; an axis that is not cut is absent from `kept`.

    An axis chosen anew in each layer has one row per *kept* layer: kept["ffn"] is (target layer, target ffn), and row i
    belongs to source layer kept["layer"][i]. `expert_ffn` is (target layer, target expert, target expert_ffn).
    """

    source: Shape
    target: Shape
    kept: Mapping[str, np.ndarray]

    def __post_init__(self) -> None:
        for axis in self.source:
            assert (axis in self.kept) or self.source[axis] == self.target[axis] or axis == "expert_active", axis
        for axis, index in self.kept.items():
            expected = tuple(self.target[a] for a in (*SCOPE.get(axis, ()), axis))
            assert index.shape == expected, f"{axis}: kept indices have shape {index.shape}, not {expected}"
            assert index.min() >= 0, axis
            assert index.max() < self.source[axis], axis
            assert (np.diff(index, axis=-1) > 0).all(), f"{axis}: kept indices do not ascend"
        self._check_groups()

    def _check_groups(self) -> None:
        """The same number of query heads stays in every kept KV group, and none outside."""
        if "head" not in self.kept or "kv" not in self.source:
            return
        group = self.source["head"] // self.source["kv"]
        per_group = self.target["head"] // self.target["kv"]
        for row, heads in enumerate(self.kept["head"]):
            kv = self.kept["kv"][row] if "kv" in self.kept else np.arange(self.source["kv"])
            assert np.array_equal(heads // group, np.repeat(kv, per_group)), f"layer {row}: heads leave their KV group"

    def source_layer(self, layer: int) -> int:
        """Source index of a target layer."""
        return int(self.kept["layer"][layer]) if "layer" in self.kept else layer

    def source_expert(self, layer: int, expert: int) -> int:
        """Source index of an expert of a target layer."""
        return int(self.kept["expert"][layer, expert]) if "expert" in self.kept else expert

    def resolve(self, layer: int | None = None, expert: int | None = None) -> dict[str, np.ndarray]:
        """Kept indices as plain 1-D arrays for one target layer (and expert); what `axes.positions` takes."""
        at = {"layer": layer, "expert": expert}
        resolved = {}
        for axis, index in self.kept.items():
            place = tuple(at[scope] for scope in SCOPE.get(axis, ()))
            if None not in place:
                resolved[axis] = index[place]
        return resolved


def keep_all(shape: Shape) -> Plan:
    """The plan that changes nothing."""
    return Plan(shape, shape, {})


def top_k(scores: np.ndarray, k: int) -> np.ndarray:
    """Ascending indices of the k largest along the last axis: (..., n) -> (..., k) int64. Ties keep the lower index."""
    order = np.argsort(-scores, axis=-1, kind="stable")[..., :k]
    return np.sort(order, axis=-1).astype(np.int64)


def from_scores(scores: Scores, source: Shape, target: Shape, layers: Sequence[int] | None = None) -> Plan:
    """Rank every cut axis by its scores and keep the best (Minitron, arXiv 2407.14679, section 2.3).

    `layers` fixes the layers to keep (ascending source indices) instead of ranking them. Neurons, heads and experts are
    ranked inside each layer; heads inside each KV group; hidden channels once for the whole network.
    """
    kept: dict[str, np.ndarray] = {}
    rows = np.arange(source["layer"])
    if layers is not None or target["layer"] != source["layer"]:
        rows = np.asarray(layers) if layers is not None else top_k(scores.require("layer", source), target["layer"])
        if len(rows) != source["layer"]:
            kept["layer"] = rows.astype(np.int64)
    for axis in ("hidden", "ffn", "shared_ffn", "expert"):
        if axis in source and target[axis] != source[axis]:
            values = scores.require(axis, source)
            kept[axis] = top_k(values[rows] if axis in SCOPE else values, target[axis])
    if "head" in source and target["head"] != source["head"]:
        kept.update(_keep_heads(scores.require("head", source)[rows], source, target))
    if "expert_ffn" in source and target["expert_ffn"] != source["expert_ffn"]:
        values = scores.require("expert_ffn", source)[rows]
        if "expert" in kept:
            values = np.take_along_axis(values, kept["expert"][:, :, None], axis=1)
        kept["expert_ffn"] = top_k(values, target["expert_ffn"])
    return Plan(source, target, kept)


def _keep_heads(scores: np.ndarray, source: Shape, target: Shape) -> dict[str, np.ndarray]:
    """Choose KV groups by the sum of their heads' scores, then heads inside each kept group: scores (layer, head)."""
    num_groups, kept_groups = source.get("kv", source["head"]), target.get("kv", target["head"])
    group = source["head"] // num_groups
    per_group = target["head"] // kept_groups
    grouped = scores.reshape(len(scores), num_groups, group)
    kv = top_k(grouped.sum(axis=-1), kept_groups)
    inside = top_k(np.take_along_axis(grouped, kv[:, :, None], axis=1), per_group)
    heads = (kv[:, :, None] * group + inside).reshape(len(scores), -1)
    kept = {"head": heads} if target["head"] != source["head"] else {}
    if "kv" in source and kept_groups != num_groups:
        kept["kv"] = kv
    return kept
