"""How many of the first g rows belong to each domain: exact, without state, and never taking a row back.

Webster's method (Sainte-Lague) for g seats: the m-th row of domain d comes when the total has grown to
(m - 1/2) / weight_d. It is house-monotone, so the counts of g + 1 rows are those of g and one more, which is what makes
them cursors; rounding each share on its own is not. Two or three domains are never a whole row from their share.
"""

from fractions import Fraction
from math import gcd, isfinite, lcm

import numpy as np

from minitron_cli.errors import MinitronError


def exact_weights(weights: tuple[float, ...]) -> tuple[int, ...]:
    """Integers in the proportions of `weights`, each read as the decimal that it was written as."""
    if not all(isfinite(weight) and weight >= 0 for weight in weights) or not any(weights):
        raise MinitronError(
            f"weights {', '.join(map(str, weights))} are not shares of a mixture",
            "each must be 0 or more, and one above 0",
        )
    fractions = [Fraction(repr(float(weight))) for weight in weights]
    scale = lcm(*(fraction.denominator for fraction in fractions))
    whole = [int(fraction * scale) for fraction in fractions]
    return tuple(number // gcd(*whole) for number in whole)


def counts(weights: tuple[int, ...], rows: int) -> np.ndarray:
    """Rows of each domain among the first `rows`: (domain,) int64, summing to `rows`. Ties go to the lower index."""
    total = sum(weights)
    found = [(2 * weight * rows + total) // (2 * total) for weight in weights]  # rounded, halves up
    positive = [index for index, weight in enumerate(weights) if weight]
    while sum(found) < rows:
        found[min(positive, key=lambda i: (Fraction(2 * found[i] + 1, weights[i]), i))] += 1
    while sum(found) > rows:
        held = [index for index in positive if found[index]]
        found[max(held, key=lambda i: (Fraction(2 * found[i] - 1, weights[i]), i))] -= 1
    return np.array(found, np.int64)


def sequence(weights: tuple[int, ...], start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows [start, stop) of the mixture: the domain of each and its number within that domain, two (rows,) int64."""
    first, last = counts(weights, start), counts(weights, stop)
    domains = np.repeat(np.arange(len(weights)), last - first)
    numbers = np.concatenate([np.arange(a, b) for a, b in zip(first, last)])
    # A division of whole numbers is rounded correctly, so that ties stay ties and go to the lower index here too.
    order = np.argsort((2.0 * numbers + 1) / np.array(weights, np.float64)[domains], kind="stable")
    return domains[order], numbers[order].astype(np.int64)
