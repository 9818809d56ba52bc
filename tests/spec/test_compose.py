"""Cutting twice equals cutting once by the composed plan: shown on tagged arrays, unit by unit."""

import numpy as np
import pytest

from minitron_cli.spec.compose import compose
from minitron_cli.spec.plan import Plan, from_scores
from minitron_cli.spec.scores import Scores, score_shape
from minitron_cli.spec.shape import Shape

SOURCE = Shape({"vocab": 9, "hidden": 12, "layer": 5, "head": 8, "kv": 4, "head_dim": 2, "expert": 6, "expert_ffn": 10,
                "expert_active": 2})  # fmt: skip
AXES = ("hidden", "layer", "head", "expert", "expert_ffn")


def _scores(shape: Shape, seed: int) -> Scores:
    rng = np.random.default_rng(seed)
    return Scores({axis: rng.random(score_shape(axis, shape)) for axis in AXES})


def _tags(plan: Plan, tags: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Apply a plan to arrays that carry a name per unit; written with loops, unlike the code under test."""
    layers = plan.kept.get("layer", np.arange(plan.source["layer"]))
    found = {"layer": tags["layer"][layers], "hidden": tags["hidden"][plan.kept.get("hidden", slice(None))]}
    for axis in ("head", "kv", "expert"):
        rows = []
        for new, old in enumerate(layers):
            rows.append(
                [tags[axis][old][i] for i in (plan.kept[axis][new] if axis in plan.kept else range(plan.source[axis]))]
            )
        found[axis] = np.array(rows)
    cubes = []
    for new, old in enumerate(layers):
        experts = plan.kept["expert"][new] if "expert" in plan.kept else range(plan.source["expert"])
        cubes.append([
            [tags["expert_ffn"][old][expert][i] for i in
             (plan.kept["expert_ffn"][new][place] if "expert_ffn" in plan.kept else range(plan.source["expert_ffn"]))]
            for place, expert in enumerate(experts)
        ])  # fmt: skip
    found["expert_ffn"] = np.array(cubes)
    return found


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"hidden": 8}, {"hidden": 4}),
        ({"layer": 4}, {"layer": 2}),
        ({"layer": 3, "head": 4}, {"head": 2, "kv": 2}),
        ({"expert": 4}, {"expert_ffn": 6}),
        ({"expert_ffn": 6}, {"expert": 3, "layer": 2}),
        ({"hidden": 10, "layer": 4, "expert": 5, "expert_ffn": 8, "head": 4}, {"hidden": 6, "layer": 2, "expert": 2,
                                                                             "expert_ffn": 4, "head": 2, "kv": 2}),
        ({}, {"hidden": 4}),
        ({"hidden": 4}, {}),
    ],
)  # fmt: skip
def test_two_cuts_are_one(first: dict[str, int], second: dict[str, int]) -> None:
    tags = {
        axis: np.arange(np.prod(score_shape(axis, SOURCE))).reshape(score_shape(axis, SOURCE)) for axis in (*AXES, "kv")
    }
    one = from_scores(_scores(SOURCE, 0), SOURCE, SOURCE.with_(**first))
    two = from_scores(_scores(one.target, 1), one.target, one.target.with_(**second))
    twice, once = _tags(two, _tags(one, tags)), _tags(compose(one, two), tags)
    assert {axis: array.tolist() for axis, array in twice.items()} == {axis: a.tolist() for axis, a in once.items()}
