"""Plans: what survives when scores are ranked, and what no plan may do."""

import numpy as np
import pytest

from minitron_cli.errors import MinitronError
from minitron_cli.spec.plan import Plan, from_scores, plan_problems, top_k
from minitron_cli.spec.scores import Scores
from minitron_cli.spec.shape import Shape

SOURCE = Shape({"vocab": 11, "hidden": 8, "layer": 4, "head": 6, "kv": 2, "head_dim": 4, "ffn": 10})
EXPERTS = Shape({"hidden": 8, "layer": 2, "expert": 4, "expert_ffn": 5, "expert_active": 2})


def scores(shape: Shape = SOURCE, seed: int = 0) -> Scores:
    generator = np.random.default_rng(seed)
    sizes = {"hidden": ("hidden",), "layer": ("layer",), "ffn": ("layer", "ffn"), "head": ("layer", "head"),
             "expert": ("layer", "expert"), "expert_ffn": ("layer", "expert", "expert_ffn")}  # fmt: skip
    return Scores({a: generator.random([shape[s] for s in axes]) for a, axes in sizes.items() if a in shape})


def test_top_k_against_a_sort_and_ties_keep_the_lower_index() -> None:
    values = np.array([[3.0, 1.0, 2.0, 3.0, 3.0], [0.0, 0.0, 0.0, 0.0, 1.0]])
    assert top_k(values, 2).tolist() == [[0, 3], [0, 4]]
    random = np.random.default_rng(1).random((5, 20))
    for row, kept in zip(random, top_k(random, 7)):
        assert set(row[kept]) == set(sorted(row)[-7:])


def test_each_axis_keeps_its_best_units() -> None:
    s = scores()
    plan = from_scores(s, SOURCE, SOURCE.with_(hidden=5, ffn=3, layer=2))
    best = np.sort(np.argsort(s.values["layer"])[-2:])
    assert plan.kept["layer"].tolist() == best.tolist()
    assert set(plan.kept["hidden"]) == set(np.argsort(s.values["hidden"])[-5:])
    for row, layer in enumerate(best):
        assert set(plan.kept["ffn"][row]) == set(np.argsort(s.values["ffn"][layer])[-3:]), "the row of another layer"
    assert plan.source_layer(0) == best[0]
    assert [plan.target_layer(int(i)) for i in best] == [0, 1]
    assert [plan.target_layer(i) for i in range(4) if i not in best] == [None, None]


def test_heads_are_ranked_inside_their_group() -> None:
    """All of the first group's heads beat all of the second's: still two stay in each."""
    values = np.tile([9.0, 8.0, 7.0, 1.0, 2.0, 3.0], (4, 1))
    plan = from_scores(Scores({"head": values}), SOURCE, SOURCE.with_(head=4))
    assert plan.kept["head"].tolist() == [[0, 1, 4, 5]] * 4
    assert "kv" not in plan.kept


def test_a_kv_group_goes_with_its_heads() -> None:
    values = np.tile([9.0, 8.0, 7.0, 10.0, 11.0, 3.0], (4, 1))  # sums 24 and 24: the tie keeps the first group
    values[2, 5] = 4.0
    plan = from_scores(Scores({"head": values}), SOURCE, SOURCE.with_(head=2, kv=1))
    assert plan.kept["kv"].tolist() == [[0], [0], [1], [0]]
    assert plan.kept["head"].tolist() == [[0, 1], [0, 1], [3, 4], [0, 1]]


def test_neurons_of_experts_follow_the_kept_experts() -> None:
    s = scores(EXPERTS)
    plan = from_scores(s, EXPERTS, EXPERTS.with_(expert=2, expert_ffn=3))
    for layer in range(2):
        for new, old in enumerate(plan.kept["expert"][layer]):
            best = np.argsort(s.values["expert_ffn"][layer, old])[-3:]
            assert set(plan.kept["expert_ffn"][layer, new]) == set(best)
            assert plan.source_expert(layer, new) == old
            assert plan.target_expert(layer, int(old)) == new
            assert np.array_equal(plan.resolve(layer, new)["expert_ffn"], plan.kept["expert_ffn"][layer, new])


def test_layers_that_are_listed_need_no_scores() -> None:
    """The published depth prune: 16 of 32 layers go, 15 to 30 counted from 0; 0 to 14 and 31 stay."""
    source = Shape({"layer": 32, "hidden": 8})
    plan = from_scores(Scores({}), source, source.with_(layer=16), layers=[*range(15), 31])
    assert plan.kept["layer"].tolist() == [*range(15), 31]


@pytest.mark.parametrize(
    ("target", "kept", "message"),
    [
        ({"ffn": 3}, {}, "ffn changes from 10 to 3 without kept indices"),
        ({"hidden": 2}, {"hidden": [1, 8]}, "leave the range 0..7"),
        ({"hidden": 2}, {"hidden": [-1, 3]}, "leave the range"),
        ({"hidden": 2}, {"hidden": [3, 1]}, "do not ascend"),
        ({"hidden": 2}, {"hidden": [3, 3]}, "do not ascend"),
        ({"hidden": 3}, {"hidden": [1, 3]}, "shape (2,), not integers of shape (3,)"),
        ({"hidden": 2}, {"hidden": [0.5, 1.5]}, "not integers"),
        ({"head": 4}, {"head": [[0, 1, 2, 3]] * 4}, "units of head leave their kv group"),
        ({"kv": 1}, {"kv": [[0]] * 4}, "units of head leave their kv group"),
        ({}, {"expert": [[0]]}, "expert is not an axis of both shapes"),
    ],
)
def test_what_no_plan_may_do(target: dict[str, int], kept: dict[str, list], message: str) -> None:
    arrays = {axis: np.array(index) for axis, index in kept.items()}
    problems = plan_problems(SOURCE, SOURCE.with_(**target), arrays)
    assert len(problems) == 1
    assert message in problems[0]
    with pytest.raises(AssertionError):
        Plan(SOURCE, SOURCE.with_(**target), arrays)


def test_keeping_everything_is_a_plan() -> None:
    plan = Plan(SOURCE, SOURCE, {})
    assert plan.kept == {}
    assert plan.resolve(0) == {}
    assert plan.target_layer(3) == plan.source_layer(3) == 3


@pytest.mark.parametrize(
    ("axis", "array", "message"),
    [
        ("hidden", np.ones(9), "have shape (9,), this model needs (8,)"),
        ("hidden", np.array([1, 2, np.nan, 4, 5, 6, 7, 8]), "not finite, first at index [2]"),
        ("hidden", np.array([1, 2, 3, 4, np.inf, 6, 7, 8]), "not finite, first at index [4]"),
        ("ffn", np.ones((4, 10)), "hold no 'hidden' axis (they hold ffn)"),
    ],
)
def test_scores_are_checked_before_they_decide(axis: str, array: np.ndarray, message: str) -> None:
    with pytest.raises(MinitronError) as caught:
        from_scores(Scores({axis: array}), SOURCE, SOURCE.with_(hidden=4))
    assert message in caught.value.message
    assert caught.value.hint


def test_groups_are_checked_in_the_layers_that_have_them() -> None:
    """Attention stands last of three layers: rows of the others mean nothing."""
    sizes = {"hidden": 8, "layer": 3, "head": 4, "kv": 2, "head_dim": 2}
    source = Shape(sizes, kinds=(("mamba",), ("mamba",), ("attention",)), kinds_with={"head": frozenset({"attention"})})
    for row, problems in (([0, 2], 0), ([0, 1], 1)):
        kept = {"head": np.array([[0, 1], [0, 1], row])}
        assert len(plan_problems(source, source.with_(head=2), kept)) == problems, row
