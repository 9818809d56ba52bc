"""Paired statistics against closed forms and scipy."""

import numpy as np
import pytest

from minitron_cli.evaluate.compare import bootstrap, compare, loss_difference, mcnemar

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


def _blocks(seed: int, shift: float) -> np.ndarray:
    """Tokens and nats (2, block) of two losses on the same text: hard blocks are hard for both."""
    rng = np.random.default_rng(0)
    tokens, hardness = rng.integers(200, 400, 200), rng.normal(3.0, 0.8, 200)
    own = np.random.default_rng(seed).normal(shift, 0.05, 200)
    return np.stack([tokens.astype(float), tokens * (hardness + own)])


def test_the_interval_of_a_loss_difference_is_that_of_the_bootstrap() -> None:
    ours, theirs = _blocks(1, 0.02), _blocks(2, 0.0)
    found = loss_difference(ours.tolist(), theirs.tolist())
    assert found is not None
    assert found.difference == pytest.approx(ours[1].sum() / ours[0].sum() - theirs[1].sum() / theirs[0].sum())
    picks = np.random.default_rng(3).integers(0, 200, (4000, 200))
    drawn = (ours[1] - theirs[1])[picks].sum(1) / ours[0][picks].sum(1)
    assert found.stderr == pytest.approx(drawn.std(), rel=0.05)
    unpaired = np.std(ours[1] / ours[0]) * np.sqrt(2 / 200)
    assert found.stderr < unpaired / 5, "what both find hard drops out"


def test_losses_on_other_text_are_not_compared() -> None:
    ours = _blocks(1, 0.0)
    assert loss_difference(ours.tolist(), (ours[:, :-1]).tolist()) is None
    assert loss_difference(ours.tolist(), (ours + 1).tolist()) is None
    assert loss_difference(ours[:, :1].tolist(), ours[:, :1].tolist()) is None
