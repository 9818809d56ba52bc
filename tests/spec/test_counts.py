"""Parameter counts from config alone, exact to the unit against the published models (recipe tables of the papers)."""

from itertools import product

import pytest

from minitron_cli.errors import MinitronError
from minitron_cli.families import family_of
from minitron_cli.spec.shape import check_target, flops_per_token, kv_bytes_per_token, num_parameters, shape_of

# model_type, layers, hidden, ffn, heads, kv, vocab -> total, without embedding and head
PUBLISHED = {
    "Nemotron-4-15B": ("nemotron", 32, 6144, 24576, 48, 8, 256000, 15_628_775_424, 12_483_047_424),
    "Nemotron-3-8B": ("nemotron", 32, 4096, 16384, 32, 32, 256000, 8_540_135_424, 6_442_983_424),
    "Minitron-8B-Base": ("nemotron", 32, 4096, 16384, 48, 8, 256000, 8_271_699_968, 6_174_547_968),
    "Minitron-4B-Base": ("nemotron", 32, 3072, 9216, 24, 8, 256000, 4_190_509_056, 2_617_645_056),
    "Llama-3.1-8B": ("llama", 32, 4096, 14336, 32, 8, 128256, 8_030_261_248, 6_979_588_096),
    "Llama-3.1-Minitron-4B-Width": ("llama", 32, 3072, 9216, 32, 8, 128256, 4_512_746_496, 3_724_741_632),
    "Llama-3.1-Minitron-4B-Depth": ("llama", 16, 4096, 14336, 32, 8, 128256, 4_540_469_248, 3_489_796_096),
    "Mistral-NeMo-12B": ("mistral", 40, 5120, 14336, 32, 8, 131072, 12_247_782_400, 10_905_605_120),
    "MN-Minitron-8B-Base": ("mistral", 40, 4096, 11520, 32, 8, 131072, 8_414_105_600, 7_340_363_776),
}

# Paper 1, table 19: layers, heads, ffn, hidden -> billions of parameters
TABLE_19 = [
    (32, 32, 12800, 5120, 8.494), (32, 32, 13824, 4608, 7.947), (32, 48, 11520, 4608, 7.871),
    (32, 48, 16384, 4096, 8.272), (31, 32, 12800, 5120, 8.311), (31, 32, 16128, 4608, 8.430),
    (31, 48, 13824, 4608, 8.357), (31, 48, 16384, 4096, 8.079), (30, 32, 12800, 5120, 8.127),
    (30, 32, 16128, 4608, 8.235), (30, 48, 13824, 4608, 8.164), (30, 48, 16384, 4096, 7.886),
    (29, 32, 12800, 5120, 7.944), (29, 32, 16128, 4608, 8.039), (29, 48, 13824, 4608, 7.970),
]  # fmt: skip


def config(layers: int, hidden: int, ffn: int, heads: int, kv: int, vocab: int) -> dict[str, object]:
    return {
        "num_hidden_layers": layers, "hidden_size": hidden, "intermediate_size": ffn, "num_attention_heads": heads,
        "num_key_value_heads": kv, "head_dim": 128, "vocab_size": vocab, "tie_word_embeddings": False,
    }  # fmt: skip


def count(model_type: str, *sizes: int, embedding: bool = True) -> int:
    family, values = family_of(model_type), config(*sizes)
    return num_parameters(family.expected(values), shape_of(family, values), embedding=embedding)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_totals_to_the_unit(name: str) -> None:
    model_type, *sizes, total, non_embedding = PUBLISHED[name]
    assert count(model_type, *sizes) == total
    assert count(model_type, *sizes, embedding=False) == non_embedding


@pytest.mark.parametrize(("layers", "heads", "ffn", "hidden", "billions"), TABLE_19)
def test_candidates_of_table_19(layers: int, heads: int, ffn: int, hidden: int, billions: float) -> None:
    assert round(count("nemotron", layers, hidden, ffn, heads, 8, 256000) / 1e9, 3) == billions


def test_table_19_is_every_grid_point_in_its_range() -> None:
    """Of the 160 points of the grid exactly the 15 published ones lie in [7.871B, 8.494B]."""
    grid = product((29, 30, 31, 32), (32, 48), (2.5, 3, 3.5, 4), (4096, 4608, 5120, 5632, 6144))
    inside = {
        (layers, heads, int(factor * hidden), hidden)
        for layers, heads, factor, hidden in grid
        if 7.8705e9 <= count("nemotron", layers, hidden, int(factor * hidden), heads, 8, 256000) < 8.4945e9
    }
    assert inside == {row[:4] for row in TABLE_19}


def test_kv_cache_and_flops_of_llama_8b() -> None:
    """Against numbers worked out by hand: 2 x 32 layers x 8 groups x 128 x 2 bytes; 2 FLOPs per weight and token."""
    family, values = family_of("llama"), config(32, 4096, 14336, 32, 8, 128256)
    shape = shape_of(family, values)
    assert kv_bytes_per_token(shape) == 131_072
    matrices = 6_979_588_096 - (2 * 32 + 1) * 4096 + 128256 * 4096
    assert flops_per_token(family.expected(values), shape) == 2 * matrices
    scores_and_mixes = flops_per_token(family.expected(values), shape, context=4096) - 2 * matrices
    assert scores_and_mixes == 4 * 32 * 32 * 128 * 4096 // 2


def test_a_token_pays_only_for_its_experts() -> None:
    family = family_of("mixtral")
    values = {**config(2, 64, 96, 4, 2, 100), "num_local_experts": 8, "num_experts_per_tok": 2}
    shape = shape_of(family, values)
    split, fused = (flops_per_token(family.expected(values, layout), shape) for layout in ("split", "fused"))
    attention = 2 * (64 * 4 * 128 * 2 + 64 * 2 * 128 * 2)
    assert split == fused == 2 * (attention + 2 * 8 * 64 + 2 * 2 * 3 * 64 * 96 + 100 * 64)


@pytest.mark.parametrize(
    ("model_type", "sizes", "message"),
    [
        ("llama", {"hidden": 5000}, "--hidden 5000 is larger than the source's 4096"),
        ("llama", {"hidden": 0}, "--hidden must be at least 1"),
        ("llama", {"head": 12}, "--heads 12 does not divide by the 8 KV groups"),
        ("llama", {"head": 12}, "allowed: 8, 16, 24, 32"),
        ("llama", {"kv": 4}, "--heads 32 over 4 KV groups is 8 a group, the source has only 4"),
        ("llama", {"hidden": 5000, "ffn": 20000}, "--ffn 20000 is larger"),
        ("stablelm", {"hidden": 3072}, "--hidden must be heads x 128"),
    ],
)
def test_impossible_targets(model_type: str, sizes: dict[str, int], message: str) -> None:
    family = family_of(model_type)
    source = shape_of(family, config(32, 4096, 14336, 32, 8, 128256))
    with pytest.raises(MinitronError) as caught:
        check_target(family, source, source.with_(**sizes))
    assert message in caught.value.message
    assert "--hidden 4096" in caught.value.hint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": None}, "lacks hidden_size"),
        ({"hidden_size": "big"}, "hidden_size is 'big'"),
        ({"num_hidden_layers": -1}, "num_hidden_layers is -1"),
        ({"num_hidden_layers": True}, "num_hidden_layers is True"),
        ({"num_key_value_heads": 5}, "32 heads over 5 KV groups"),
    ],
)
def test_a_config_that_makes_no_sense(change: dict[str, object], message: str) -> None:
    with pytest.raises(MinitronError) as caught:
        shape_of(family_of("llama"), {**config(32, 4096, 14336, 32, 8, 128256), **change})
    assert message in caught.value.message


def test_head_dim_is_derived_where_the_config_is_silent() -> None:
    values = config(32, 4096, 14336, 32, 8, 128256)
    silent = {key: value for key, value in values.items() if key != "head_dim"}
    assert shape_of(family_of("llama"), silent)["head_dim"] == 128
    assert shape_of(family_of("llama"), {**values, "head_dim": 96})["head_dim"] == 96
