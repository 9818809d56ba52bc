"""What engines need, against their own formulas as they stand in their sources."""

from typing import Any

import pytest

from minitron_cli.families import FAMILIES, family_of
from minitron_cli.spec.engines import READ, breaches, lines, servable
from minitron_cli.spec.family import Family
from minitron_cli.spec.shape import shape_of
from tests.toys import TOY_CONFIGS, toy_values

LLAMA_8B: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
}  # fmt: skip
GEMMA3_4B: dict[str, Any] = {
    "model_type": "gemma3_text", "vocab_size": 262208, "hidden_size": 2560, "intermediate_size": 10240,
    "num_hidden_layers": 34, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
    "query_pre_attn_scalar": 256,
}  # fmt: skip
GEMMA3_27B = {
    **GEMMA3_4B, "hidden_size": 5376, "intermediate_size": 21504, "num_hidden_layers": 62,
    "num_attention_heads": 32, "num_key_value_heads": 16, "head_dim": 128, "query_pre_attn_scalar": 168,
}  # fmt: skip


def _facts(config: dict[str, Any]) -> dict[str, Any]:
    family = family_of(config["model_type"])
    return servable(family, config, shape_of(family, config))


def _breaches(config: dict[str, Any]) -> dict[str, list[str]]:
    family = family_of(config["model_type"])
    return breaches(family, config, shape_of(family, config))


@pytest.mark.parametrize(("heads", "kv", "ffn"), [(32, 8, 9216), (24, 3, 9216), (12, 2, 1000), (6, 6, 1004)])
def test_tensor_parallelism_is_what_vllm_divides(heads: int, kv: int, ffn: int) -> None:
    changed = {"num_attention_heads": heads, "num_key_value_heads": kv, "intermediate_size": ffn}

    def loads(tp: int) -> bool:  # vllm/model_executor/layers/linear.py: QKVParallelLinear and ColumnParallelLinear
        shared = tp % kv == 0 if tp >= kv else kv % tp == 0
        return heads % tp == 0 and shared and ffn % tp == 0

    assert _facts({**LLAMA_8B, **changed})["tensor_parallel"] == [tp for tp in (1, 2, 4, 8) if loads(tp)]


def test_mamba_heads_are_shared_as_vllms_mixer_asserts() -> None:
    """heads % tp == 0 and (groups % tp == 0 or groups == 1), beside the rules of attention and the MLP."""
    values = toy_values("bamba") | {"num_attention_heads": 8, "num_key_value_heads": 8, "intermediate_size": 64}
    assert _facts(values | {"mamba_n_groups": 2})["tensor_parallel"] == [1, 2]
    assert _facts(values | {"mamba_n_groups": 1})["tensor_parallel"] == [1, 2, 4, 8]


def test_multiples_and_rows_of_llama() -> None:
    facts = _facts({**LLAMA_8B, "hidden_size": 3008, "intermediate_size": 9216})
    assert facts["multiples"] == {"vocab": [64, 128, 256], "hidden": [64], "ffn": [64, 128, 256]}
    assert facts["k_quants_apart"] == {"hidden": 3008}
    assert _facts(LLAMA_8B)["k_quants_apart"] == {}
    assert not facts["tied"]
    assert facts["divided_by"]["vocab"] == [1, 2, 4, 8]


def test_a_width_cut_of_llama_is_wrong_in_ctranslate2_alone() -> None:
    assert not any(_breaches(LLAMA_8B).values())
    found = _breaches({**LLAMA_8B, "hidden_size": 3072})
    assert {engine for engine, why in found.items() if why} == {"CTranslate2"}
    assert "hidden / heads = 96 channels, where this model has 128" in found["CTranslate2"][0]
    mistral = _breaches({**LLAMA_8B, "model_type": "mistral", "hidden_size": 3072})
    assert not any(mistral.values())


@pytest.mark.parametrize("depth", [15, 18, 20, 34])
def test_the_order_of_gemma_3_is_that_of_llama_cpp(depth: int) -> None:
    """llama.cpp, `llama_hparams::set_swa_pattern(6)`: a layer slides where il % 6 < 5."""
    source = [il % 6 < 5 for il in range(34)]
    for kept in (range(depth), range(34 - depth, 34)):
        slides = [source[layer] for layer in kept]
        right = slides == [il % 6 < 5 for il in range(depth)]
        listed = ["sliding_attention" if one else "full_attention" for one in slides]
        found = _breaches({**GEMMA3_4B, "num_hidden_layers": depth, "layer_types": listed})
        assert bool(found["llama.cpp"]) is not right
        assert bool(found["MLX"]) is not right
        assert not found["vLLM"]


def test_the_scale_of_gemma_3_hangs_on_its_depth_in_llama_cpp() -> None:
    assert not any(_breaches(GEMMA3_4B).values())
    assert not any(_breaches(GEMMA3_27B).values())
    wide, deep = {**GEMMA3_27B, "hidden_size": 4608}, {**GEMMA3_27B, "num_hidden_layers": 56}
    assert "root of 144" in _breaches(wide)["llama.cpp"][0]
    assert "root of 128" in _breaches(deep)["llama.cpp"][0]


def test_deepseek_lite_is_told_by_its_depth_in_llama_cpp() -> None:
    lite = toy_values("deepseek_v2") | {"num_hidden_layers": 27}
    assert not _breaches(lite)["llama.cpp"]
    assert "27 layers" not in str(_breaches(lite))
    assert "by its 24 layers" in _breaches(lite | {"num_hidden_layers": 24})["llama.cpp"][0]


def test_dense_layers_among_experts() -> None:
    values = toy_values("qwen3_moe")
    assert not _breaches(values)["llama.cpp"]
    assert "1 has none" in _breaches(values | {"mlp_only_layers": [1]})["llama.cpp"][0]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_engines_are_known_and_types_are_the_familys(family: Family) -> None:
    for assumption in family.engines:
        assert set(assumption.engines) <= set(READ)
        assert set(assumption.types) <= set(family.model_types)


@pytest.mark.parametrize("model_type", TOY_CONFIGS)
def test_every_family_has_facts_and_lines(model_type: str) -> None:
    facts = _facts(toy_values(model_type))
    assert facts["tensor_parallel"][0] == 1
    assert lines(facts)[0].startswith("tensor parallel over 1")
