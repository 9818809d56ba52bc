"""Families with Mamba-2 layers: every form in which their configs are published, and sizes that follow from others."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from minitron_cli.checkpoint.describe import describe
from minitron_cli.checkpoint.hfconfig import pruned_config
from minitron_cli.checkpoint.reader import load_config, open_checkpoint
from minitron_cli.errors import MinitronError
from minitron_cli.families import family_of
from minitron_cli.spec.plan import from_scores
from minitron_cli.spec.scores import Scores
from minitron_cli.spec.shape import shape_of
from minitron_cli.training.preflight import _layer
from tests.prune.cutting import load, logits_of, prune_to
from tests.toys import make_toy, toy_values

Toy = Callable[..., Path]


def rewritten(source: Path, output: Path, **changes: Any) -> Path:
    """The model with other words in its config.json; None takes a key out."""
    shutil.copytree(source, output)
    values = {**json.loads((source / "config.json").read_text()), **changes}
    (output / "config.json").write_text(json.dumps({k: v for k, v in values.items() if v is not None}))
    return output


@pytest.mark.parametrize(
    ("stated", "left"),
    [
        ({"hybrid_override_pattern": "M*EM-"}, {"hybrid_override_pattern": "M*E-"}),
        (
            {"layers_block_type": ["mamba", "attention", "moe", "mamba", "mlp"]},
            {"layers_block_type": ["mamba", "attention", "moe", "mlp"]},
        ),
    ],
)
def test_the_pattern_of_nemotron_h_follows_a_depth_cut_in_its_own_form(
    stated: dict[str, Any], left: dict[str, Any], tmp_path: Path
) -> None:
    types = ["linear_attention", "full_attention", "moe", "linear_attention", "mlp"]
    source = make_toy("nemotron_h", tmp_path / "made", layers_block_type=types)
    source = rewritten(source, tmp_path / "source", **{"layers_block_type": None, "num_hidden_layers": 5, **stated})
    checkpoint = open_checkpoint(source)
    plan = from_scores(Scores({}), checkpoint.shape, checkpoint.shape.with_(layer=4), [0, 1, 2, 4])
    config = pruned_config(checkpoint.config, checkpoint.family, plan)
    assert {key: config.get(key) for key in ("hybrid_override_pattern", "layers_block_type") if key in config} == left
    prune_to(source, tmp_path / "small", {"layer": 4})
    assert len(load(tmp_path / "small").model.layers) == 4


@pytest.mark.parametrize("pattern", ["M*X-M", "M*E", 7])
def test_a_pattern_that_says_something_else_is_refused(pattern: object) -> None:
    family = family_of("nemotron_h")
    values = {**toy_values("nemotron_h"), "hybrid_override_pattern": pattern, "layers_block_type": None}
    with pytest.raises(MinitronError, match=r"hybrid_override_pattern must name one of M, \*, -, E for each of the 5"):
        shape_of(family, values)


def test_sizes_of_layers_that_a_model_has_none_of_are_not_asked_for() -> None:
    """Nemotron-H has no experts, and its config says nothing of them."""
    values = {**toy_values("nemotron_h"), "layers_block_type": None, "hybrid_override_pattern": "M-M*-"}
    values = {key: value for key, value in values.items() if "expert" not in key and "moe" not in key}
    shape = shape_of(family_of("nemotron_h"), values)
    assert {"ffn", "head", "mamba_head"} <= set(shape)
    assert not {"expert", "expert_ffn", "shared_ffn", "expert_active"} & set(shape)


def test_granite_without_experts_and_without_mamba_layers(tmp_path: Path) -> None:
    """Granite 4 micro: transformers wants sizes of Mamba layers that fit any width, though it has none."""
    types = ["full_attention"] * 3
    source = make_toy("granitemoehybrid", tmp_path / "micro", layer_types=types, num_local_experts=0)
    shape = open_checkpoint(source).shape
    assert not {"expert", "expert_ffn", "mamba_head", "conv"} & set(shape)
    prune_to(source, tmp_path / "small", {"hidden": 42, "ffn": 56, "layer": 2})
    assert load(tmp_path / "small").config.hidden_size == 42


def test_a_model_of_mamba_layers_alone(tmp_path: Path) -> None:
    source = make_toy("bamba", tmp_path / "source", attn_layer_indices=None)
    facts = describe(open_checkpoint(source), 64)
    assert (facts["kv_bytes_per_token"], facts["layers"]) == (0, {"mamba": 3})
    prune_to(source, tmp_path / "small", {"hidden": 36, "ffn": 56, "mamba_head": 12, "layer": 2})
    assert logits_of(tmp_path / "small").isfinite().all()
    assert _layer(open_checkpoint(source).shape, 1, 4) > 0


def test_granite_with_its_older_names_of_layers(toy: Toy, tmp_path: Path) -> None:
    types = ["mamba", "attention", "mamba"]
    source = rewritten(toy("granitemoehybrid"), tmp_path / "source", layer_types=None, layers_block_type=types)
    prune_to(source, tmp_path / "small", {"layer": 2})
    assert sorted(load_config(tmp_path / "small")["layer_types"]) == ["attention", "mamba"]


@pytest.mark.parametrize("model_type", ["granitemoehybrid", "bamba"])
def test_a_width_that_their_mamba_layers_do_not_divide_by_is_refused(model_type: str, toy: Toy, tmp_path: Path) -> None:
    with pytest.raises(MinitronError, match=r"mamba_expand .* would be 16 x 9 / 42, which is not a whole number"):
        prune_to(toy(model_type), tmp_path / "small", {"hidden": 42})
    prune_to(toy(model_type), tmp_path / "small", {"hidden": 36})
    assert load_config(tmp_path / "small")["mamba_expand"] == 4


@pytest.mark.parametrize("model_type", ["granitemoehybrid", "bamba", "falcon_h1"])
def test_channels_of_a_mamba_head_that_are_left_to_be_computed(model_type: str, toy: Toy, tmp_path: Path) -> None:
    source = rewritten(toy(model_type), tmp_path / "source", mamba_d_head="auto")
    assert open_checkpoint(source).shape["mamba_dim"] == 9
    prune_to(source, tmp_path / "small", {"hidden": 36})
    assert logits_of(tmp_path / "small").isfinite().all()


def test_falcon_h1_states_the_channels_of_its_mamba_layers_once_the_width_is_another(tmp_path: Path) -> None:
    """Without `mamba_d_ssm` they are a multiple of the width, whatever that is."""
    source = make_toy("falcon_h1", tmp_path / "made", mamba_d_ssm=None, mamba_n_heads=16)
    prune_to(source, tmp_path / "small", {"hidden": 42})
    assert load_config(tmp_path / "small")["mamba_d_ssm"] == 144


def test_latent_experts_are_refused() -> None:
    assert "moe_latent_size is 16" in family_of("nemotron_h").unmet({"moe_latent_size": 16})[0]
