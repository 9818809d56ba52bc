"""The permutation is a bijection for every n, mixes, and never changes between versions."""

import numpy as np
import pytest

from minitron_cli.data.permutation import derive, permute


@pytest.mark.parametrize("n", [1, 2, 3, 5, 31, 63, 64, 65, 127, 129, 1000, 4096, 4097, 99_991])
@pytest.mark.parametrize("key", [0, 1, 2**64 - 1])
def test_every_index_comes_once(n: int, key: int) -> None:
    assert sorted(permute(np.arange(n), n, key).tolist()) == list(range(n))


def test_an_index_does_not_depend_on_its_companions() -> None:
    whole = permute(np.arange(5000), 5000, 7)
    some = np.array([4999, 0, 123, 123])
    assert (permute(some, 5000, 7) == whole[some]).all()


def test_huge_n_needs_no_table() -> None:
    n = 10**12 + 7
    found = permute(np.arange(n - 10_000, n), n, 3)
    assert len(set(found.tolist())) == 10_000
    assert found.min() >= 0
    assert found.max() < n
    assert abs(found.mean() / n - 0.5) < 0.02  # 10,000 uniform draws: standard error 0.003


def test_images_are_spread_evenly_and_unrelated_to_their_neighbours() -> None:
    """Blocks of the input against blocks of the output: chi-square of a 16 x 16 table, 225 degrees of freedom."""
    n = 50_000
    statistics = []
    for key in range(20):
        found = permute(np.arange(n), n, derive(5, key))
        table = np.histogram2d(np.arange(n), found, bins=16)[0]
        expected = n / 256
        statistics.append(((table - expected) ** 2 / expected).sum())
        assert abs(np.corrcoef(found[:-1], found[1:])[0, 1]) < 5 / n**0.5
    assert 190 < np.mean(statistics) < 260  # mean 225, standard error 21 / sqrt(20) = 4.7 for random permutations


def test_fixed_points_are_as_rare_as_chance_has_them() -> None:
    n, keys = 400, 400
    fixed = sum(int((permute(np.arange(n), n, derive(1, key)) == np.arange(n)).sum()) for key in range(keys))
    assert abs(fixed / keys - 1.0) < 0.25  # one each on average, standard error 0.05


def test_each_part_of_a_key_counts() -> None:
    keys = {derive(seed, domain, epoch) for seed in range(5) for domain in range(5) for epoch in range(5)}
    assert len(keys) == 125
    assert derive(1, 2) != derive(2, 1)


def test_the_order_of_a_seed_is_a_promise() -> None:
    """A run that resumes under a later version must see the same rows: these numbers may never change."""
    assert permute(np.arange(10), 10, derive(0, 0, 0)).tolist() == [3, 7, 8, 4, 6, 1, 9, 0, 5, 2]
    assert permute(np.arange(4), 10**9, derive(1234, 2, 3)).tolist() == [393759527, 890948978, 332538808, 689314006]
