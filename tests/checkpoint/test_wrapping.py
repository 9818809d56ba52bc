"""The text model's config and names inside a model of text and images, against transformers' own reading."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from minitron_cli.checkpoint.architecture import architecture_of
from minitron_cli.checkpoint.reader import load_config, open_checkpoint
from minitron_cli.errors import MinitronError
from minitron_cli.hf.load import load_model
from minitron_cli.prune.execute import dry_run
from minitron_cli.prune.request import PruneRequest
from minitron_cli.prune.write import write_pruned
from tests.prune.cutting import difference, logits_of, plan_for, prune_to
from tests.toys import toy_ids
from tests.wrapped import image_batch, load_whole, make_wrapped, stored, wrapped_model

# What the published gemma-3-4b-it says of its text model: the other sizes are transformers' defaults.
SPARSE = {"hidden_size", "intermediate_size", "model_type", "num_hidden_layers", "sliding_window"}
PROJECTION = "multi_modal_projector.mm_input_projection_weight"


@pytest.fixture(scope="module")
def gemma3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_wrapped("gemma3", tmp_path_factory.mktemp("gemma3"))


def changed(source: Path, output: Path, **values: Any) -> Path:
    """A copy whose config.json has other values; None takes a key out."""
    shutil.copytree(source, output)
    file = output / "config.json"
    config = json.loads(file.read_text()) | values
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return output


def test_sizes_that_the_config_leaves_out_are_those_of_transformers(tmp_path: Path) -> None:
    sizes = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "layer_types": None}
    source = make_wrapped("gemma3", tmp_path / "full", **sizes)
    config = json.loads((source / "config.json").read_text())
    config["text_config"] = {key: value for key, value in config["text_config"].items() if key in SPARSE}
    config["text_config"]["vocab_size"] = 97
    del config["tie_word_embeddings"]
    (source / "config.json").write_text(json.dumps(config))
    shape = open_checkpoint(source).shape
    assert (shape["head"], shape["kv"], shape["head_dim"]) == (8, 4, 256)
    assert load_config(source)["tie_word_embeddings"] is True
    prune_to(source, tmp_path / "small", {"layer": 2, "hidden": 40})
    written = json.loads((tmp_path / "small" / "config.json").read_text())["text_config"]
    assert (written["num_attention_heads"], written["head_dim"], written["hidden_size"]) == (8, 256, 40)
    load_whole(tmp_path / "small")


def test_a_head_of_its_own_in_the_files_counts_and_not_the_default(gemma3: Path, tmp_path: Path) -> None:
    """Some wrappers are tied by default, and their checkpoints hold a head all the same."""
    model = wrapped_model("gemma3", tie_word_embeddings=False)
    with torch.no_grad():
        model.lm_head.weight.copy_(model.lm_head.weight * 1.5)
    model.save_pretrained(tmp_path / "source")
    source = changed(tmp_path / "source", tmp_path / "copy", tie_word_embeddings=None)
    assert load_config(source)["tie_word_embeddings"] is False
    with torch.no_grad():
        expected = model(toy_ids(2, 11), use_cache=False).logits
        found = load_model(source, torch.float32)(toy_ids(2, 11), use_cache=False).logits
    assert difference(found, expected) < 1e-6
    prune_to(source, tmp_path / "small", {"hidden": 36})
    assert json.loads((tmp_path / "small" / "config.json").read_text())["tie_word_embeddings"] is False
    load_whole(tmp_path / "small")


# Sizes that published configs name, and parameters of the text model: Gemma 3 4B and Vicuna 7B (64 more tokens each),
# Qwen3 1.7B and 30B-A3B, Qwen2.5 3B, LFM2 350M. All else is left to transformers' defaults, as it is there.
PUBLISHED: list[tuple[dict[str, Any], int]] = [
    (
        {
            "model_type": "gemma3",
            "text_config": {
                "model_type": "gemma3_text",
                "hidden_size": 2560,
                "intermediate_size": 10240,
                "num_hidden_layers": 34,
                "sliding_window": 1024,
            },
        },
        3_880_099_328 + 64 * 2560,
    ),
    ({"model_type": "llava", "text_config": {"model_type": "llama", "vocab_size": 32064}}, 6_738_939_904),
    (
        {
            "model_type": "qwen3_vl",
            "tie_word_embeddings": True,
            "text_config": {
                "model_type": "qwen3_vl_text",
                "hidden_size": 2048,
                "intermediate_size": 6144,
                "num_hidden_layers": 28,
                "num_attention_heads": 16,
                "num_key_value_heads": 8,
                "rope_scaling": {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"},
                "rope_theta": 5000000,
                "tie_word_embeddings": True,
                "vocab_size": 151936,
            },
        },
        1_720_574_976,
    ),
    (
        {
            "model_type": "qwen3_vl_moe",
            "text_config": {
                "model_type": "qwen3_vl_moe_text",
                "decoder_sparse_step": 1,
                "head_dim": 128,
                "hidden_size": 2048,
                "intermediate_size": 6144,
                "mlp_only_layers": [],
                "moe_intermediate_size": 768,
                "num_attention_heads": 32,
                "num_experts": 128,
                "num_experts_per_tok": 8,
                "num_hidden_layers": 48,
                "num_key_value_heads": 4,
                "rope_scaling": {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"},
                "vocab_size": 151936,
            },
        },
        30_532_122_624,
    ),
    # As it is published, all on one level.
    (
        {
            "model_type": "qwen2_5_vl",
            "hidden_size": 2048,
            "intermediate_size": 11008,
            "num_hidden_layers": 36,
            "num_attention_heads": 16,
            "num_key_value_heads": 2,
            "rope_scaling": {"mrope_section": [16, 24, 24], "type": "mrope"},
            "rope_theta": 1000000.0,
            "tie_word_embeddings": True,
            "vision_config": {"hidden_size": 1280, "model_type": "qwen2_5_vl", "out_hidden_size": 2048},
            "vocab_size": 151936,
        },
        3_085_938_688,
    ),
    (
        {
            "model_type": "lfm2_vl",
            "text_config": {
                "model_type": "lfm2",
                "block_dim": 1024,
                "block_ff_dim": 6656,
                "full_attn_idxs": [2, 5, 8, 10, 12, 14],
                "hidden_size": 1024,
                "num_attention_heads": 16,
                "num_hidden_layers": 16,
                "num_key_value_heads": 8,
            },
        },
        354_483_968,
    ),
]


@pytest.mark.parametrize(("config", "parameters"), PUBLISHED, ids=lambda value: str(value)[:24])
def test_parameters_of_published_text_models(config: dict[str, Any], parameters: int, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert architecture_of(load_config(tmp_path)).parameters == parameters


@pytest.mark.parametrize("model_type", ["qwen2_vl", "qwen2_5_vl"])
def test_a_config_on_one_level_and_heads_that_only_the_text_model_can_leave_alone(
    model_type: str, tmp_path: Path
) -> None:
    source = make_wrapped(model_type, tmp_path / "made")
    config = json.loads((source / "config.json").read_text())
    text = {key: value for key, value in config.pop("text_config").items() if key not in ("model_type", "layer_types")}
    text["rope_scaling"] = {**text.pop("rope_parameters"), "type": "mrope"}
    (source / "config.json").write_text(json.dumps(text | config))
    batch = image_batch(model_type)
    with torch.no_grad():
        expected = load_whole(source)(**batch).logits
        prune_to(source, tmp_path / "same", {})
        assert difference(load_whole(tmp_path / "same")(**batch).logits, expected) < 1e-6
    with pytest.raises(MinitronError, match="derives head_dim from hidden / heads"):
        dry_run(PruneRequest(model=str(source), hidden=36, force=True))
    alone = open_checkpoint(source).unwrapped()
    write_pruned(alone, plan_for(alone, {"hidden": 36}), tmp_path / "text")
    assert json.loads((tmp_path / "text" / "config.json").read_text())["head_dim"] == 8
    assert logits_of(tmp_path / "text").isfinite().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.update({"audio_tower.conv.weight": torch.ones(3)}), "gemma3 is not known to have audio_tower"),
        (
            lambda t: t.pop(PROJECTION),
            "mm_input_projection_weight is not there",
        ),
        (lambda t: t.update({PROJECTION: torch.ones(12, 47)}), "says .12, 48."),
        (lambda t: t.pop("language_model.model.norm.weight"), "model.norm.weight: 0 of 1 tensors are there"),
        (lambda t: [t.pop(n) for n in list(t) if n.startswith("language_model.")], "begins with model.language_model."),
    ],
)
def test_what_is_not_understood_is_named(gemma3: Path, tmp_path: Path, change, message: str) -> None:
    source = changed(gemma3, tmp_path / "source")
    tensors = stored(source)
    change(tensors)
    save_file(tensors, source / "model.safetensors")
    with pytest.raises(MinitronError, match=message):
        open_checkpoint(source)


def test_a_text_model_of_no_known_family_is_refused_by_name(gemma3: Path, tmp_path: Path) -> None:
    source = changed(gemma3, tmp_path / "source", text_config={"model_type": "mamba"})
    with pytest.raises(MinitronError, match="mamba models cannot be pruned"):
        open_checkpoint(source)


def test_quantised_weights_are_refused(gemma3: Path, tmp_path: Path) -> None:
    source = changed(gemma3, tmp_path / "source", quantization_config={"quant_method": "fp8"})
    with pytest.raises(MinitronError, match="quantised with fp8"):
        open_checkpoint(source)
