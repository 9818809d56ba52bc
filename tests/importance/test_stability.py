"""The stability report against hand-made rankings."""

import numpy as np
import pytest

from minitron_cli.importance.stability import compare, spearman


def test_spearman_is_the_correlation_of_ranks():
    assert spearman(np.array([1.0, 2, 3, 4]), np.array([10.0, 20, 30, 99])) == pytest.approx(1.0)
    assert spearman(np.array([1.0, 2, 3, 4]), np.array([4.0, 3, 2, 1])) == pytest.approx(-1.0)
    # ranks 1 2 3 4 5 against 2 1 4 3 5: 1 - 6 * (1 + 1 + 1 + 1) / (5 * 24)
    assert spearman(np.arange(5.0), np.array([1.0, 0, 3, 2, 4])) == pytest.approx(0.8)


def test_ties_share_their_rank():
    # ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4
    expected = np.corrcoef([1, 2.5, 2.5, 4], [1, 2, 3, 4])[0, 1]
    assert spearman(np.array([0.0, 1, 1, 2]), np.arange(4.0)) == pytest.approx(expected)
    assert spearman(np.ones(3), np.ones(3)) == 1.0
    assert spearman(np.ones(3), np.arange(3.0)) == 0.0


def test_the_worst_layer_and_the_share_kept_by_both():
    one = np.array([[4.0, 3, 2, 1], [4, 3, 2, 1]])
    other = np.array([[4.0, 3, 2, 1], [1, 2, 3, 4]])
    found = compare(one, other)
    assert found["spearman"] == pytest.approx(0.0)
    assert found["worst"] == pytest.approx(-1.0)
    assert found["overlap"] == {"0.5": 0.5, "0.75": pytest.approx((1 + 2 / 3) / 2)}
