"""How many of the first g rows belong to each domain: exact, without state, and never taking a row back.

Webster's method (Sainte-Lague) for g seats: the m-th row of domain d comes when the total has grown to
(m - 1/2) / weight_d. It is house-monotone, so the counts of g + 1 rows are those of g and one more, which is what makes
them cursors; rounding each share on its own is not. Two or three domains are never a whole row from their share.

Where one mixture follows another, `owed` carries over what a domain has been given too few of: its m-th row then comes
at (m - 1/2 - owed_d) / weight_d, or a small weight would be rounded away again in every short stretch.
"""

from fractions import Fraction
from math import floor, gcd, isfinite, lcm

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


def counts(weights: tuple[int, ...], rows: int, owed: tuple[Fraction, ...] = ()) -> np.ndarray:
    """Rows of each domain among the first `rows`: (domain,) int64, summing to `rows`. Ties go to the lower index."""
    total, owed = sum(weights), owed or (Fraction(0),) * len(weights)
    positive = [index for index, weight in enumerate(weights) if weight]
    found = [0] * len(weights)
    for i in positive:
        found[i] = max(0, floor(Fraction(weights[i] * rows, total) + owed[i] + Fraction(1, 2)))
    while sum(found) < rows:
        found[min(positive, key=lambda i: ((2 * (found[i] - owed[i]) + 1) / weights[i], i))] += 1
    while sum(found) > rows:
        held = [index for index in positive if found[index]]
        found[max(held, key=lambda i: ((2 * (found[i] - owed[i]) - 1) / Fraction(weights[i]), i))] -= 1
    return np.array(found, np.int64)


def sequence(
    weights: tuple[int, ...], start: int, stop: int, owed: tuple[Fraction, ...] = ()
) -> tuple[np.ndarray, np.ndarray]:
    """Rows [start, stop) of the mixture: the domain of each and its number within that domain, two (rows,) int64."""
    first, last = counts(weights, start, owed), counts(weights, stop, owed)
    domains = np.repeat(np.arange(len(weights)), last - first)
    numbers = np.concatenate([np.arange(a, b) for a, b in zip(first, last)])
    late = 2.0 * np.array([float(each) for each in owed]) if owed else np.zeros(len(weights))
    # A division of whole numbers is rounded correctly, so that ties stay ties and go to the lower index here too.
    order = np.argsort((2.0 * numbers + 1 - late[domains]) / np.array(weights, np.float64)[domains], kind="stable")
    return domains[order], numbers[order].astype(np.int64)


def owed_after(weights: tuple[int, ...], rows: int, owed: tuple[Fraction, ...] = ()) -> tuple[Fraction, ...]:
    """What each domain is owed when `rows` have been given, to the millionth of a row."""
    given, total, owed = counts(weights, rows, owed).tolist(), sum(weights), owed or (Fraction(0),) * len(weights)
    exact = (Fraction(w * rows, total) + o - g for w, o, g in zip(weights, owed, given))
    return tuple(Fraction(round(each * 10**6), 10**6) for each in exact)
