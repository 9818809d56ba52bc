"""What repeats in the order of layers, and the depth cuts that keep it; the oracle tries every choice of layers."""

from itertools import combinations

import numpy as np
import pytest

from minitron_cli.spec.pattern import best_layers, continues, nearest_counts, period_of, whole_counts

GEMMA3_1B = tuple("full" if (layer + 1) % 6 == 0 else "sliding" for layer in range(26))  # breaks off after two


@pytest.mark.parametrize(
    ("pattern", "period"),
    [
        (GEMMA3_1B, (0, 6)),
        ("aaaa", (0, 1)),
        ("a", None),
        ("dssss", (1, 1)),  # a dense layer first
        ("dabab", (1, 2)),
        ("aabaaba", (0, 3)),
        ("abcd", None),
    ],
)
def test_the_period_is_found(pattern: str, period: tuple[int, int] | None) -> None:
    assert period_of(tuple(pattern)) == period


def test_whole_periods_with_what_follows_them_or_without() -> None:
    assert whole_counts(GEMMA3_1B) == (6, 8, 12, 14, 18, 20, 24, 26)
    assert nearest_counts(GEMMA3_1B, 15) == (14, 18)
    assert nearest_counts(GEMMA3_1B, 4) == (6,)
    assert whole_counts(tuple("dabababa")) == (3, 4, 5, 6, 7, 8)
    assert whole_counts(tuple("abcd")) == (4,)


def test_layers_that_stay_continue_the_pattern() -> None:
    rest = [layer for layer in range(26) if layer not in range(6, 12)]
    assert continues(GEMMA3_1B, rest)
    assert continues(GEMMA3_1B, [layer for layer in range(26) if layer not in range(3, 9)])
    assert not continues(GEMMA3_1B, [layer for layer in range(26) if layer not in range(6, 11)])


@pytest.mark.parametrize("pattern", ["ssfssfss", "lllflllf", "dssssss", "ababcab"])
def test_the_best_layers_are_the_best_of_all_choices(pattern: str) -> None:
    total = len(pattern)
    for seed in range(5):
        scores = np.random.default_rng(seed).random(total)
        for count in range(1, total + 1):
            kept = [some for some in combinations(range(total), count) if continues(tuple(pattern), some)]
            best = max(kept, key=lambda some: scores[list(some)].sum())
            assert best_layers(tuple(pattern), scores, count).tolist() == list(best)
