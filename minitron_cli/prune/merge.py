"""Merging experts: those that go are averaged into one that stays, after their neurons were put into its order.

A group is an expert that stays and those most like it: the cosine between the router's logits over the calibration
tokens. An expert computes the same whatever the order of its neurons, so that before averaging each is permuted to
match the one that stays: the assignment of neurons with the largest sum of inner products of their weights. The average
is weighted by how many tokens each was given. The router keeps the rows of those that stay.

    m-smoe    every expert that goes joins the most similar one that stays (M-SMoE, arXiv 2310.01334, sections 3.1, 3.2)
    nearest   only the lower-ranked half of those that stay takes others in, the upper half stays as it is (partial
              preservation)
    cluster   like m-smoe, but what stays is the highest-ranked expert of each of as many clusters (average linkage)
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod

import numpy as np

from minitron_cli.checkpoint.bits import from_bits, to_bits
from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.checkpoint.scores_file import read_scores
from minitron_cli.errors import MinitronError
from minitron_cli.hf.readers import EXPERT, EXPERT_FFN, EXPERT_LOGITS, EXPERT_ROUTING, ROUTED
from minitron_cli.prune.expert_parts import part_dims, part_of
from minitron_cli.prune.request import PruneRequest
from minitron_cli.spec.axes import Dim, axes_of, positions
from minitron_cli.spec.family import Match
from minitron_cli.spec.plan import Merge, Plan, where_kept
from minitron_cli.spec.scores import Scores
from minitron_cli.spec.shape import Shape, is_routed


@dataclass(frozen=True, slots=True)
class Routing:
    """What merging knows of a source: cosines of router logits (layer, expert, expert), tokens (layer, expert)."""

    similarity: np.ndarray
    tokens: np.ndarray


def read_routing(request: PruneRequest, shape: Shape) -> Routing:
    """The routers' sums in the scores file of a request."""
    assert request.scores is not None
    scores, raw = read_scores(request.scores)
    if EXPERT_LOGITS not in raw or EXPERT_ROUTING not in raw or "rows" not in scores.provenance:
        raise MinitronError(
            f"{request.scores} has no sums of router logits, by which experts are merged",
            "measure again with `minitron importance`, or leave --expert-merge out",
        )
    gram = np.moveaxis(raw[EXPERT_LOGITS].sum(0), 1, 0)  # (row, expert, expert)
    size = np.sqrt(np.maximum(np.diagonal(gram, axis1=1, axis2=2), np.finfo(float).tiny))
    similarity = np.zeros((shape["layer"], shape[EXPERT], shape[EXPERT]))
    tokens = np.zeros((shape["layer"], shape[EXPERT]))
    layers = [row["layer"] for row in scores.provenance["rows"][EXPERT_LOGITS]]
    similarity[layers] = gram / size[:, :, None] / size[:, None, :]
    tokens[layers] = raw[EXPERT_ROUTING][:, 0, ROUTED.index("tokens")].sum(0)
    return Routing(similarity, tokens)


def one_of_each_cluster(scores: Scores, routing: Routing, count: int) -> Scores:
    """The scores with the best expert of each of `count` clusters of every layer above all others."""
    from scipy.cluster.hierarchy import cut_tree, linkage
    from scipy.spatial.distance import squareform

    values = np.array(scores.values[EXPERT], dtype=float)
    above = np.ptp(values) + 1
    for ranks, similarity in zip(values, routing.similarity):
        distance = 1 - (similarity + similarity.T) / 2
        tree = linkage(squareform(distance, checks=False), "average")
        found = cut_tree(tree, n_clusters=count)[:, 0]
        best = [max(np.flatnonzero(found == cluster), key=lambda expert: ranks[expert]) for cluster in range(count)]
        ranks[best] += above
    return replace(scores, values={**scores.values, EXPERT: values})


def merged(plan: Plan, routing: Routing, scores: Scores, method: str) -> Plan:
    """The plan with its dropped experts merged into those that it keeps."""
    into = np.full((plan.target["layer"], plan.source[EXPERT]), -1, dtype=np.int64)
    share = np.zeros(into.shape)
    ranks = where_kept(
        scores.require(EXPERT, plan.source), EXPERT, {k: plan.kept[k] for k in ("layer",) if k in plan.kept}
    )
    for layer, kept in enumerate(plan.kept[EXPERT]):
        source = plan.source_layer(layer)
        open_to = np.arange(len(kept))
        if method == "nearest":
            order = np.argsort(-ranks[layer][kept], kind="stable")
            open_to = np.sort(order[len(kept) // 2 :])
        into[layer] = open_to[np.argmax(routing.similarity[source][:, kept[open_to]], axis=1)]
        into[layer, kept] = np.arange(len(kept))
        for place, expert in enumerate(kept):
            group = into[layer] == place
            tokens = routing.tokens[source] * group
            share[layer, group] = tokens[group] / tokens.sum() if tokens.any() else (np.flatnonzero(group) == expert)
    return replace(plan, merge=Merge(into, share))


@dataclass(slots=True)
class Merging:
    """A source whose experts are merged by a plan; neurons' permutations are found when they are first needed."""

    checkpoint: Checkpoint
    plan: Plan
    _lines: dict[tuple[str, int | None, int | None], Match] = field(default_factory=dict)
    _orders: dict[tuple[int, int, int], np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        routed = [m for m in self.checkpoint.matches.values() if is_routed(m.weight)]
        self._lines = {(m.weight.name, m.layer, m.expert): m for m in routed}

    def change_of(
        self, match: Match, expert: int | None, keep: Sequence[np.ndarray | None], shape: Sequence[int]
    ) -> "Merged | None":
        """How one kept expert's part of a tensor takes in the others of its group, or None where it is alone."""
        if expert is None or not is_routed(match.weight) or match.layer is None or self.plan.merge is None:
            return None
        layer = self.plan.target_layer(match.layer)
        assert layer is not None
        place = self.plan.target_expert(layer, expert)
        share = self.plan.merge.share[layer]
        group = np.flatnonzero((self.plan.merge.into[layer] == place) & (share > 0))
        others = {int(other): float(share[other]) for other in group if other != expert}
        return Merged(self, match, expert, others, tuple(keep), tuple(shape)) if others else None

    def part(self, match: Match, expert: int) -> np.ndarray:
        """One expert's part of a line, as floating-point numbers."""
        own = self._lines[match.weight.name, match.layer, None if match.expert is None else expert]
        part = part_of(self.checkpoint, own, expert)
        values = part.values()
        if not np.isfinite(values).all():
            raise MinitronError(
                f"expert {expert} in {own.name} holds values that are not finite (NaN or infinity)",
                "is the file damaged? without --expert-merge the expert would be dropped",
            )
        return values

    def order(self, layer: int, stays: int, goes: int) -> np.ndarray:
        """Which neuron of expert `goes` stands for each of `stays`: (expert_ffn,)."""
        if (layer, stays, goes) not in self._orders:
            total = np.zeros((self.plan.source[EXPERT_FFN],) * 2)
            for match in self._neurons(layer, stays):
                one, other = (self._by_neuron(match, expert) for expert in (stays, goes))
                total += one @ other.T
            self._orders[layer, stays, goes] = matching(total)
        return self._orders[layer, stays, goes]

    def _neurons(self, layer: int, expert: int) -> Iterator[Match]:
        """The lines with neurons of an expert."""
        for match in self._lines.values():
            if EXPERT_FFN in match.weight.axes and match.layer == layer and match.expert in (None, expert):
                yield match

    def _by_neuron(self, match: Match, expert: int) -> np.ndarray:
        return by_unit(self.part(match, expert), part_dims(match), EXPERT_FFN, self.plan.source.sizes)


@dataclass(frozen=True, slots=True)
class Merged:
    """One expert's part of a tensor -> the average with others, then the rows and columns that stay."""

    by: Merging
    match: Match
    expert: int
    others: Mapping[int, float]  # their shares of the average
    keep: tuple[np.ndarray | None, ...]
    shape: tuple[int, ...]

    @property
    def whole(self) -> bool:
        """A row may come from any row of another expert."""
        return True

    def apply(self, raw: np.ndarray, dtype: str, columns: np.ndarray | None) -> np.ndarray:
        """Bits in, bits out, rounded once. Written as a difference, so that averaging equals changes nothing."""
        own = from_bits(raw, dtype).reshape(self.shape)
        own = own.astype(np.float64 if dtype == "F64" else np.float32, copy=False)
        total = own.copy()
        layer = self.match.layer
        assert layer is not None
        for other, share in self.others.items():
            order = {EXPERT_FFN: self.by.order(layer, self.expert, other)}
            values = self.by.part(self.match, other)
            for i, dim in enumerate(part_dims(self.match)):
                index = positions(dim, self.by.plan.source.sizes, order)
                values = values if index is None else np.take(values, index, axis=i)
            total += own.dtype.type(share) * (values - own)
        for i, index in enumerate(self.keep):
            total = total if index is None else np.take(total, index, axis=i)
        return to_bits(np.ascontiguousarray(total), dtype)


def by_unit(values: np.ndarray, dims: Sequence[Dim], axis: str, sizes: Mapping[str, int]) -> np.ndarray:
    """All values that belong to each unit of `axis`, side by side: (unit, value)."""
    found = []
    for i, dim in enumerate(dims):
        offset = 0
        for product in dim if axis in axes_of(dim) else ():
            lengths = [f if isinstance(f, int) else sizes[f] for f in product]
            if axis in product:
                block = np.take(values, np.arange(offset, offset + prod(lengths)), axis=i)
                block = block.reshape(*values.shape[:i], *lengths, *values.shape[i + 1 :])
                found.append(np.moveaxis(block, i + product.index(axis), 0).reshape(sizes[axis], -1))
            offset += prod(lengths)
    return np.concatenate(found, axis=1)


def matching(inner: np.ndarray) -> np.ndarray:
    """The permutation p that maximises the sum of inner[i, p[i]]: (n, n) -> (n,) (Hungarian method)."""
    from scipy.optimize import linear_sum_assignment

    return np.asarray(linear_sum_assignment(inner, maximize=True)[1])
