"""The order in which layers of several sorts follow one another: what repeats in it, and depth cuts that keep it.

A pattern holds what tells a layer from others, layer by layer. A cut keeps it where the layers that stay begin the
source's own pattern: then an engine that computes a layer's sort from its index computes the right one.
"""

from collections.abc import Hashable, Sequence

import numpy as np

Pattern = tuple[Hashable, ...]


def period_of(pattern: Pattern) -> tuple[int, int] | None:
    """(layers before it, layers of a period) of what repeats at least twice up to the last layer, which may break off.

    Of several readings that with the fewest layers before the first repetition; None where nothing repeats.
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
    """The numbers of layers, ascending, that whole periods come to, with what follows the last one or without it."""
    if (found := period_of(pattern)) is None:
        return (len(pattern),)
    first, length = found
    rest = (len(pattern) - first) % length
    counts = {first + length * times + left for times in range(1, len(pattern)) for left in (0, rest)}
    return tuple(sorted(count for count in counts if count <= len(pattern)))


def nearest_counts(pattern: Pattern, count: int) -> tuple[int, ...]:
    """The next smaller and the next larger of the whole counts, where there are such."""
    counts = whole_counts(pattern)
    below, above = [n for n in counts if n < count], [n for n in counts if n > count]
    return (*below[-1:], *above[:1])


def continues(pattern: Pattern, layers: Sequence[int]) -> bool:
    """Whether the layers that stay begin the source's own pattern."""
    return tuple(pattern[layer] for layer in layers) == pattern[: len(layers)]


def best_layers(pattern: Pattern, scores: np.ndarray, count: int) -> np.ndarray:
    """Of all choices of so many layers that keep the pattern, that with the largest sum of scores: ascending indices.

    Exact, one layer at a time: the best choice of j layers among the first i follows from those among the first i - 1.
    Of equal sums that of the lower indices.
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
