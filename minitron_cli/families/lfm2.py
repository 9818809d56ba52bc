"""LFM2: short convolutions, and attention in some layers. The channels of a convolution are as many as `hidden` has."""

from collections.abc import Mapping
from typing import Any

from minitron_cli.families.llama import ATTENTION, MODEL
from minitron_cli.spec.assumptions import head_size
from minitron_cli.spec.axes import CONFIG_KEYS
from minitron_cli.spec.family import family
from minitron_cli.spec.kinds import listed


def _attention_at(config: Mapping[str, Any], num_layers: int) -> list[str]:
    at = config.get("full_attn_idxs")
    return ["attention" if at is None or layer in at else "conv" for layer in range(num_layers)]


def _own_width(config: dict[str, Any]) -> dict[str, Any]:
    """The config with the width that the MLP has; published ones give it before two thirds are taken and rounded up."""
    width = config.get("block_ff_dim", config.get("intermediate_size"))
    if type(width) is int and config.get("block_auto_adjust_ff_dim", True):
        width = int(2 * width / 3)
        if (factor := config.get("block_ffn_dim_multiplier", 1.0)) is not None:
            step = config.get("block_multiple_of", 256)
            width = -(-int(factor * width) // step) * step
    rest = {key: value for key, value in config.items() if key not in ("block_ff_dim", "tie_embedding")}
    tied = config.get("tie_embedding", config.get("tie_word_embeddings", True))
    return {**rest, "intermediate_size": width, "block_auto_adjust_ff_dim": False, "tie_word_embeddings": tied}


LFM2 = family(
    "lfm2",
    ["lfm2"],
    MODEL.replace("model.norm.weight", "model.embedding_norm.weight")
    + """
    model.layers.{layer}.operator_norm.weight           hidden
    model.layers.{layer}.ffn_norm.weight                hidden
    model.layers.{layer}.feed_forward.w1.weight         ffn hidden
    model.layers.{layer}.feed_forward.w3.weight         ffn hidden
    model.layers.{layer}.feed_forward.w2.weight         hidden ffn
    [conv]
    model.layers.{layer}.conv.in_proj.weight            (3 hidden) hidden
    model.layers.{layer}.conv.in_proj.bias              (3 hidden)                ?conv_bias
    model.layers.{layer}.conv.conv.weight               hidden 1 conv
    model.layers.{layer}.conv.conv.bias                 hidden                    ?conv_bias
    model.layers.{layer}.conv.out_proj.weight           hidden hidden
    model.layers.{layer}.conv.out_proj.bias             hidden                    ?conv_bias
    [attention]
    model.layers.{layer}.self_attn.q_layernorm.weight   head_dim
    model.layers.{layer}.self_attn.k_layernorm.weight   head_dim
    """
    + ATTENTION.replace("o_proj", "out_proj"),
    config_keys={**CONFIG_KEYS, "conv": "conv_L_cache"},
    defaults={"tie_word_embeddings": True, "conv_L_cache": 3},
    per_layer_index=("full_attn_idxs",),
    kinds=(listed("layer_types", {"conv": "conv", "full_attention": "attention"}, _attention_at),),
    normal=_own_width,
    unrotated="the channels of its short convolutions are those of the stream, each by itself",
    engines=(head_size("vLLM", "llama.cpp", "MLX"),),
)
