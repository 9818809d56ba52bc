"""Layers of several kinds: what a config says of them, which layers have an axis, what may stay after a depth cut."""

import numpy as np
import pytest

from minitron_cli.errors import MinitronError
from minitron_cli.spec.axes import parse_table
from minitron_cli.spec.kinds import SPARSE_STEPS, dense_first, every, listed, sparse_steps
from minitron_cli.spec.plan import Plan, from_scores
from minitron_cli.spec.scores import Scores
from minitron_cli.spec.shape import Shape, copies, kv_bytes_per_token

CONV, ATTENTION = ("conv",), ("attention",)
SHAPE = Shape(
    {"layer": 4, "hidden": 8, "head": 4, "kv": 2, "head_dim": 3, "ffn": 6},
    kinds=(CONV, ATTENTION, CONV, CONV),
    kinds_with={axis: frozenset(ATTENTION) for axis in ("head", "kv")},
)
TABLE = """
    model.layers.{layer}.norm.weight    hidden
    [attention]
    model.layers.{layer}.q_proj.weight  (head head_dim) hidden
"""


def test_lines_above_the_first_section_hold_for_all_layers() -> None:
    norm, query = parse_table(TABLE)
    assert (norm.kind, query.kind) == (None, "attention")
    assert (copies(norm, SHAPE), copies(query, SHAPE)) == (4, 1)


def test_which_layers_have_an_axis() -> None:
    assert SHAPE.layers_of("ffn") == (0, 1, 2, 3)
    assert SHAPE.layers_of("head") == (1,)
    assert SHAPE.layers_of("expert") == ()
    assert kv_bytes_per_token(SHAPE) == 2 * 1 * 2 * 3 * 2


@pytest.mark.parametrize(("scores", "kept"), [([9, 1, 8, 7], [0, 1]), ([1, 2, 3, 9], [1, 3])])
def test_the_best_layer_of_every_kind_stays(scores: list[float], kept: list[int]) -> None:
    plan = from_scores(Scores({"layer": np.array(scores, float)}), SHAPE, SHAPE.with_(layer=2))
    assert plan.kept["layer"].tolist() == kept
    assert plan.target.kinds == tuple(SHAPE.kinds[i] for i in kept)


def test_a_set_with_every_kind_is_found_where_there_is_one() -> None:
    """The best layer is in no pair that has all four kinds."""
    shape = Shape({"layer": 3}, kinds=(("linear", "dense"), ("full", "sparse"), ("linear", "sparse")))
    plan = from_scores(Scores({"layer": np.array([1.0, 2, 3])}), shape, shape.with_(layer=2))
    assert plan.kept["layer"].tolist() == [0, 1]


@pytest.mark.parametrize("layers", [[0, 2], [1]])
def test_a_kind_cannot_go_altogether(layers: list[int]) -> None:
    with pytest.raises(MinitronError, match="layer would stay"):
        from_scores(Scores({}), SHAPE, SHAPE.with_(layer=len(layers)), layers)


def test_a_plan_knows_the_kinds_of_its_layers() -> None:
    target = SHAPE.with_(layer=2)
    Plan(SHAPE, target.of_layers([1, 3], SHAPE), {"layer": np.array([1, 3])})
    with pytest.raises(AssertionError, match="other kinds"):
        Plan(SHAPE, target.of_layers([0, 1], SHAPE), {"layer": np.array([1, 3])})


def test_kinds_as_configs_publish_them() -> None:
    types = listed("layer_types", {"c": "conv", "f": "attention"}, lambda config, n: every(2, "attention", "conv", n))
    assert types.read({"layer_types": ["c", "f", "f"]}, 3) == ["conv", "attention", "attention"]
    assert types.read({}, 4) == ["conv", "attention", "conv", "attention"]
    for wrong in (["c", "x"], ["c"], "cf"):
        with pytest.raises(MinitronError, match="layer_types must name one of c, f for each of the 2 layers"):
            types.read({"layer_types": wrong}, 2)
    prefix = dense_first("first_k_dense_replace")
    assert prefix.read({"first_k_dense_replace": 1}, 3) == ["dense", "sparse", "sparse"]
    assert prefix.write({}, ("dense", "dense", "sparse")) == {"first_k_dense_replace": 2}


@pytest.mark.parametrize("config", [{}, {"decoder_sparse_step": 2}, {"decoder_sparse_step": 2, "mlp_only_layers": [1]}])
def test_sparse_steps_are_those_of_transformers(config: dict[str, object]) -> None:
    """Against the layers that transformers builds, before and after they are written as a list of dense ones."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {
        "hidden_size": 8,
        "num_hidden_layers": 4,
        "num_experts": 2,
        "moe_intermediate_size": 8,
        "vocab_size": 9,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    for values in (config, SPARSE_STEPS.write({}, sparse_steps(config, 4))):
        with torch.device("meta"):
            built = AutoConfig.for_model("qwen3_moe", **sizes, intermediate_size=8, **values)
            layers = AutoModelForCausalLM.from_config(built).model.layers
        found = ["sparse" if hasattr(layer.mlp, "experts") else "dense" for layer in layers]
        assert found == list(sparse_steps(values, 4)) == list(sparse_steps(config, 4))
