"""Paired statistics against closed forms and scipy."""

import numpy as np
import pytest

from minitron_cli.evaluate.compare import bootstrap, compare, mcnemar

scipy_stats = pytest.importorskip("scipy.stats")


@pytest.mark.parametrize(("better", "worse"), [(0, 0), (1, 0), (0, 5), (3, 9), (40, 60), (511, 640), (4000, 4300)])
def test_mcnemar_is_the_binomial_test_of_the_discordant_pairs(better: int, worse: int) -> None:
    total = better + worse
    expected = scipy_stats.binomtest(better, total).pvalue if total else 1.0
    assert mcnemar(better, worse) == pytest.approx(expected, rel=1e-9)


def test_identical_answers_have_p_one() -> None:
    samples = {str(i): float(i % 3 == 0) for i in range(100)}
    found = compare(samples, samples)
    assert found is not None
    assert (found.p_value, found.test, found.difference) == (1.0, "mcnemar", 0.0)
    graded = {key: value / 7 + 0.1 for key, value in samples.items()}
    found = compare(graded, graded)
    assert found is not None
    assert (found.p_value, found.test) == (1.0, "bootstrap")


def test_a_planted_difference_is_found_and_a_coin_flip_is_not() -> None:
    rng = np.random.default_rng(0)
    base = {str(i): float(rng.random() < 0.6) for i in range(500)}
    planted = {key: value if int(key) % 8 else 0.0 for key, value in base.items()}
    other = {key: float(rng.random() < 0.6) for key in base}
    found, nothing = compare(planted, base), compare(other, base)
    assert found is not None
    assert nothing is not None
    assert found.p_value < 1e-4
    assert found.difference < 0
    assert nothing.p_value > 0.05


def test_bootstrap_agrees_with_the_t_test_where_both_hold() -> None:
    rng = np.random.default_rng(1)
    for shift in (0.0, 0.05, 0.12):
        differences = rng.normal(shift, 1.0, 400)
        expected = scipy_stats.ttest_1samp(differences, 0.0).pvalue
        assert bootstrap(differences, resamples=20_000) == pytest.approx(expected, abs=0.02)


def test_only_common_samples_count() -> None:
    found = compare({"a": 1.0, "b": 0.0, "x": 1.0}, {"a": 0.0, "b": 0.0, "y": 0.0})
    assert found is not None
    assert (found.num_samples, found.better, found.worse) == (2, 1, 0)
    assert compare({"a": 1.0}, {"b": 1.0}) is None
