"""The order in which layers of several sorts follow one another: what repeats in it, and depth cuts that keep it.

A pattern holds, layer by layer, all in which layers differ. A cut keeps it where the layers that stay begin the
source's own pattern: then an engine that computes a layer's sort from its index computes the right one.
"""

from collections.abc import Hashable, Sequence

import numpy as np

Pattern = tuple[Hashable, ...]


def period_of(pattern: Pattern) -> tuple[int, int] | None:
    """The period that repeats up to the last layer: (layers before it, layers in it); None where nothing repeats.

    It occurs at least twice, and the last repetition may be cut short. Of several readings, the one whose first period
    ends earliest is taken.
    """
    total = len(pattern)
    found = [
        (first + length, first, length)
        for length in range(1, total // 2 + 1)
        for first in range(total - 2 * length + 1)
        if pattern[first : total - length] == pattern[first + length :]
    ]
    return min(found)[1:] if found else None


def whole_counts(pattern: Pattern) -> tuple[int, ...]:
    """The depths, ascending, that consist of whole periods, with or without the layers after the source's last one."""
    if (found := period_of(pattern)) is None:
        return (len(pattern),)
    first, length = found
    rest = (len(pattern) - first) % length
    counts = {first + length * times + left for times in range(1, len(pattern)) for left in (0, rest)}
    return tuple(sorted(count for count in counts if count <= len(pattern)))


def nearest_counts(pattern: Pattern, count: int) -> tuple[int, ...]:
    """The next smaller and the next larger of `whole_counts`, where they exist."""
    counts = whole_counts(pattern)
    below, above = [n for n in counts if n < count], [n for n in counts if n > count]
    return (*below[-1:], *above[:1])


def continues(pattern: Pattern, layers: Sequence[int]) -> bool:
    """Whether the layers that stay begin the source's own pattern."""
    return tuple(pattern[layer] for layer in layers) == pattern[: len(layers)]


def best_layers(pattern: Pattern, scores: np.ndarray, count: int) -> np.ndarray:
    """Ascending indices of the `count` layers that keep the pattern and have the largest sum of scores.

    Exact, one layer at a time: the best choice of j layers among the first i follows from those among the first i - 1.
    Ties go to the lower indices.
    """
    best: list[tuple[float, tuple[int, ...]] | None] = [(0.0, ()), *[None] * count]
    for layer, sort in enumerate(pattern):
        for place in range(min(layer, count - 1), -1, -1):
            so_far, known = best[place], best[place + 1]
            if so_far is None or pattern[place] != sort:
                continue
            total = so_far[0] + float(scores[layer])
            if known is None or total > known[0]:
                best[place + 1] = (total, (*so_far[1], layer))
    found = best[count]
    assert found is not None, "the first layers alone keep the pattern"
    return np.array(found[1], dtype=np.int64)
