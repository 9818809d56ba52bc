"""The learning rate as a pure function of the step."""

import math
from itertools import pairwise

import pytest

from minitron_cli.training.schedule import DECAYS, SCHEDULES, Schedule, learning_rate


def rates(**changes: object) -> list[float]:
    schedule = Schedule(**{"kind": "cosine", "peak": 1e-3, "floor": 1e-4, "warmup": 20, "steps": 200, **changes})  # type: ignore[arg-type]
    return [learning_rate(schedule, step) for step in range(200)]


@pytest.mark.parametrize("kind", SCHEDULES)
def test_warm_up_is_linear_and_reaches_the_peak(kind: str) -> None:
    found = rates(kind=kind, decay_steps=40)
    assert found[0] == pytest.approx(1e-3 / 20)
    assert found[9] == pytest.approx(1e-3 / 2)
    assert found[19] == 1e-3
    assert max(found) == 1e-3


@pytest.mark.parametrize("kind", ["cosine", "linear", "wsd"])
def test_the_last_step_gets_the_floor_and_nothing_goes_below(kind: str) -> None:
    found = rates(kind=kind, decay_steps=40)
    assert found[-1] == pytest.approx(1e-4)
    assert all(a >= b for a, b in pairwise(found[19:])), "falls without a bump"


def test_cosine_against_its_formula_in_the_middle() -> None:
    expected = 1e-4 + (1e-3 - 1e-4) * (1 + math.cos(math.pi * (110 - 20) / (199 - 20))) / 2
    assert rates()[110] == pytest.approx(expected)


def test_constant_stays() -> None:
    assert set(rates(kind="constant")[19:]) == {1e-3}


@pytest.mark.parametrize("decay", DECAYS)
def test_wsd_is_stable_until_its_last_fraction(decay: str) -> None:
    found = rates(kind="wsd", decay=decay, decay_steps=40)
    assert set(found[19:160]) == {1e-3}
    assert found[160] < 1e-3
    assert found[-1] == pytest.approx(1e-4)


def test_wsd_decay_shapes_at_half_way() -> None:
    half = {d: rates(kind="wsd", decay=d, decay_steps=40)[179] for d in DECAYS}
    assert half["linear"] == pytest.approx(5.5e-4)
    assert half["cosine"] == pytest.approx(5.5e-4)
    assert half["sqrt"] == pytest.approx(1e-4 + 9e-4 * (1 - math.sqrt(0.5)))
    assert half["exponential"] == pytest.approx(math.sqrt(1e-3 * 1e-4))


def test_wsd_prefix_is_the_same_for_a_longer_run() -> None:
    """What makes branching sound: before the decay, the rate does not depend on how long the run is."""
    assert rates(kind="wsd", decay_steps=40)[:160] == rates(kind="wsd", decay_steps=10, steps=900)[:160]
