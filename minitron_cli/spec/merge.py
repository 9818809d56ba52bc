"""The residual merge of pruned heads (Minitron, arXiv 2407.14679, section 2.3), an option that is off by default.

Of L heads ranked by importance K stay, and head i becomes head_i + (head_i - head_{2K-i+1}) for i in [K-(L-K), K],
counted from 1: the worst that stays takes up its difference to the best that goes, the next to the next. Inside each KV
group. The paper leaves open what is meant, and its authors' released code merges nothing:

- the lower end as printed pairs with head L+1, so the range is taken to start at K-(L-K)+1; it needs L <= 2K;
- which tensors make up "head_i" is not said. For grouped queries it speaks of query heads only: `query` merges the
  query projection, `both` the columns of the output projection as well;
- the sign is the paper's: LaCo's rule, which it cites, adds head_j - head_i instead. Which one was run is not known.
"""

from dataclasses import dataclass

import numpy as np

from minitron_cli.errors import MinitronError
from minitron_cli.spec.axes import Weight, axes_of
from minitron_cli.spec.shape import Shape

MODES = ("query", "both")


@dataclass(frozen=True, slots=True)
class HeadMerge:
    """Which dropped head each kept one takes up: source indices (target layer, target head), its own for none."""

    mode: str
    partner: np.ndarray

    def applies(self, weight: Weight, dim: int) -> bool:
        """Whether this dimension of a weight is merged: rows that make queries, columns that read heads if asked.

        Norms and sinks have one value for each head or channel and are only sliced.
        """
        if "head" not in axes_of(weight.dims[dim]):
            return False
        if len(weight.dims) == 1:
            return weight.name.endswith(".bias")
        return dim == 0 or self.mode == "both"


def head_merge(mode: str, scores: np.ndarray, source: Shape, target: Shape, kept: np.ndarray) -> HeadMerge:
    """Pair heads by rank inside their KV group: scores (layer, source head), kept (layer, target head)."""
    if mode not in MODES:
        raise MinitronError(f"--head-merge {mode} is unknown", f"one of {', '.join(MODES)}")
    num_groups = source.get("kv", source["head"])
    group, stay = source["head"] // num_groups, target["head"] // num_groups
    if target.get("kv", target["head"]) != num_groups or group > 2 * stay:
        raise MinitronError(
            f"--head-merge cannot take {source['head']} heads in {num_groups} KV groups to {target['head']}",
            "it merges query heads inside KV groups that all stay, and needs at least half of each group's heads",
        )
    # rank -> head, best first, inside each group; ties keep the lower index as everywhere.
    order = np.argsort(-scores.reshape(len(scores), num_groups, group), axis=-1, kind="stable")
    partner = np.broadcast_to(np.arange(source["head"]), scores.shape).copy()
    first = np.arange(num_groups) * group
    for rank in range(2 * stay - group, stay):
        into, taken = (order[:, :, r] + first for r in (rank, 2 * stay - 1 - rank))
        np.put_along_axis(partner, into, taken, axis=1)
    return HeadMerge(mode, np.take_along_axis(partner, kept, axis=1))
