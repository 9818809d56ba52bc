"""The forecast against hand-made scores whose retained shares are known."""

import numpy as np
import pytest

from minitron_cli.spec.proxy import calibrate, features, forecast, retained
from minitron_cli.spec.scores import Scores
from minitron_cli.spec.shape import Shape

SOURCE = Shape({"vocab": 8, "hidden": 4, "layer": 2, "head": 4, "kv": 2, "head_dim": 2, "ffn": 4})
SCORES = Scores({
    "hidden": np.array([3.0, 4.0, 0.0, 0.0]),
    "ffn": np.array([[1.0, 1.0, 1.0, 1.0], [2.0, 0.0, 0.0, 0.0]]),
    "head": np.array([[1.0, 2.0, 2.0, 1.0], [1.0, 0.0, 0.0, 1.0]]),
    "layer": np.array([0.25, 0.75]),
})  # fmt: skip


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ({"hidden": 2}, {"hidden": 1.0}),
        ({"hidden": 1}, {"hidden": 16 / 25}),
        ({"ffn": 2}, {"ffn": (0.5 + 1.0) / 2}),
        ({"head": 2}, {"head": (8 / 10 + 1.0) / 2}),
        ({"layer": 1}, {"layer": 0.75}),
        ({"layer": 1, "ffn": 1}, {"layer": 0.75, "ffn": 1.0}),
        ({}, {}),
    ],
)
def test_retained_shares(target: dict[str, int], expected: dict[str, float]) -> None:
    assert retained(SCORES, SOURCE, SOURCE.with_(**target)) == pytest.approx(expected)


def test_calibration_recovers_planted_weights_and_never_goes_negative() -> None:
    rng = np.random.default_rng(0)
    planted = {"ffn": 2.0, "hidden": 5.0}
    rows = [{"ffn": rng.random(), "hidden": rng.random()} for _ in range(6)]
    assert calibrate([(row, forecast(row, planted)) for row in rows]) == pytest.approx(planted)
    harmless = [(row, 3 * row["hidden"] - 0.5 * row["ffn"]) for row in rows]
    found = calibrate(harmless)
    assert found["ffn"] == 0
    assert found["hidden"] > 0


def test_a_smaller_cut_never_looks_worse() -> None:
    costs = [forecast(features(SCORES, SOURCE, SOURCE.with_(hidden=h)), {}) for h in (4, 3, 2, 1)]
    assert costs == sorted(costs)
