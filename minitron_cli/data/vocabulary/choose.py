"""Which tokens go: leaves of the merge graph, the least used first."""

import heapq

import numpy as np

from minitron_cli.data.vocabulary.pieces import NONE, Pieces
from minitron_cli.errors import MinitronError


def removal_order(counts: np.ndarray, pieces: Pieces) -> np.ndarray:
    """Ids in the order in which they go, so that what is left is closed at every point: counts (rows,) -> (n,).

    Only a token that no remaining one is merged from can go; the least used goes first, of equals the one with the
    largest id. Its uses become uses of its two parts, because that is how the text is spelled without it. Ids without a
    token go before all others; required ones never do.
    """
    uses = np.where(pieces.present, counts, -1).astype(np.int64)
    parents = [[int(parent) for parent in pair if parent != NONE] for pair in pieces.parents]
    children = np.bincount(pieces.parents[pieces.parents != NONE], minlength=len(uses))
    free = ~pieces.required
    leaves = [(int(uses[i]), -int(i)) for i in np.flatnonzero((children == 0) & free)]
    heapq.heapify(leaves)
    order = []
    while leaves:
        used, negated = heapq.heappop(leaves)
        order.append(-negated)
        for parent in parents[-negated]:
            uses[parent] += used
            children[parent] -= 1
            if not children[parent] and free[parent]:
                heapq.heappush(leaves, (int(uses[parent]), -parent))
    return np.array(order, np.int64)


def kept_of_size(order: np.ndarray, rows: int, size: int) -> np.ndarray:
    """The `size` ids that stay, ascending."""
    if size < rows - len(order):
        raise MinitronError(
            f"--vocab {size:,} is too small: {rows - len(order):,} tokens must stay",
            "bytes, special and added tokens, those of the chat template and of --keep-tokens, and what they are made "
            "of: ask for more than that",
        )
    return np.setdiff1d(np.arange(rows), order[: rows - size])


def size_for_coverage(order: np.ndarray, counts: np.ndarray, coverage: float) -> int:
    """The least number of ids whose tokens are at least this share of the text's, going in this order."""
    lost = np.cumsum(counts[order])
    return len(counts) - int(np.searchsorted(lost, (1 - coverage) * counts.sum(), side="right"))


def parse_coverage(text: str) -> float:
    """ "99.9%" or "0.999" -> 0.999."""
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise MinitronError(f"--vocab-coverage {text} is not a share of the text", "write it like 99.9% or 0.999")
    return share
