"""Counts of a mixture against Webster's method done one seat at a time in exact fractions."""

import random
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest

from minitron_cli.data.mixture import counts, exact_weights, sequence
from minitron_cli.errors import MinitronError

MIXTURES = [
    (1.0,),
    (0.7, 0.3),
    (0.5, 0.5),
    (0.6, 0.3, 0.1),
    (0.5, 0.0, 0.5),
    (123_456.0, 7.0, 9_876_543.0),
    (0.97, *(0.003,) * 10),
    (0.1, 0.2, 0.3, 0.15, 0.25),
]


def one_at_a_time(weights: tuple[float, ...], rows: int) -> list[int]:
    """The domain of each of the first `rows`: always the one with the smallest (count + 1/2) / weight."""
    shares = [Fraction(str(weight)) for weight in weights]
    held = [0] * len(weights)
    order = []
    for _ in range(rows):
        candidates = [i for i, share in enumerate(shares) if share]
        chosen = min(candidates, key=lambda i: ((held[i] + Fraction(1, 2)) / shares[i], i))
        held[chosen] += 1
        order.append(chosen)
    return order


@pytest.mark.parametrize("weights", MIXTURES)
def test_counts_and_sequence_are_websters(weights: tuple[float, ...]) -> None:
    oracle = one_at_a_time(weights, 400)
    exact = exact_weights(weights)
    for rows in [*range(60), 100, 333, 400]:
        assert counts(exact, rows).tolist() == np.bincount(oracle[:rows], minlength=len(weights)).tolist()
    domains, numbers = sequence(exact, 0, 400)
    assert domains.tolist() == oracle
    for domain in range(len(weights)):
        assert numbers[domains == domain].tolist() == list(range(oracle.count(domain)))


@pytest.mark.parametrize("weights", MIXTURES)
def test_a_stretch_of_the_sequence_is_cut_out_of_the_whole(weights: tuple[float, ...]) -> None:
    exact = exact_weights(weights)
    whole = sequence(exact, 0, 300)
    for start, stop in [(0, 1), (17, 60), (60, 300)]:
        part = sequence(exact, start, stop)
        assert (part[0] == whole[0][start:stop]).all()
        assert (part[1] == whole[1][start:stop]).all()


def test_shares_are_exact_to_rounding_far_out() -> None:
    pick = random.Random(0)
    for _ in range(200):
        weights = tuple(round(pick.uniform(0.01, 1), 3) for _ in range(pick.choice([2, 3])))
        rows = pick.randrange(10**9)
        total = sum(Fraction(str(weight)) for weight in weights)
        found = counts(exact_weights(weights), rows)
        assert found.sum() == rows
        for weight, count in zip(weights, found.tolist()):
            assert abs(count - rows * Fraction(str(weight)) / total) < 1


def test_rounding_each_share_would_take_rows_back() -> None:
    """The negative control: cumulative rounding, the obvious way, is not monotone; ours is."""
    weights = (0.97, *(0.003,) * 10)
    bounds = np.cumsum([0, *weights]) / sum(weights)
    naive = [np.diff(np.floor(bounds * rows + 0.5)) for rows in range(400)]
    ours = [counts(exact_weights(weights), rows) for rows in range(400)]
    assert any((later < before).any() for before, later in pairwise(naive))
    assert not any((later < before).any() for before, later in pairwise(ours))


@pytest.mark.parametrize("weights", [(0.0,), (0.5, -0.1), (float("nan"), 1.0), (float("inf"),)])
def test_weights_that_are_no_shares(weights: tuple[float, ...]) -> None:
    with pytest.raises(MinitronError, match="not shares of a mixture"):
        exact_weights(weights)
