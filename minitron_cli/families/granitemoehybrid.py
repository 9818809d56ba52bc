"""Granite 4: Mamba-2 layers, attention in some; an MLP in every layer, experts beside it in the larger models."""

from collections.abc import Mapping
from typing import Any

from minitron_cli.families.experts import EXPERT_KEYS
from minitron_cli.families.granitemoe import STACKED_EXPERTS
from minitron_cli.families.llama import ATTENTION, MODEL, NORMS, O_BIAS, PRE_NORMS, QKV_BIAS
from minitron_cli.families.mamba2 import EXPAND, MAMBA2, MAMBA_DEFAULTS, MAMBA_KEYS, MAMBA_WARNS, own_channels
from minitron_cli.spec.assumptions import head_size
from minitron_cli.spec.family import family
from minitron_cli.spec.kinds import Kinds, listed

_MIXERS = {"linear_attention": "mamba", "mamba": "mamba", "full_attention": "attention", "attention": "attention"}


def _normal(config: dict[str, Any]) -> dict[str, Any]:
    """One name for the list of layers. Without Mamba layers, sizes of theirs that transformers takes for any width."""
    rest = {key: value for key, value in config.items() if key != "layers_block_type"}
    types = config.get("layer_types") or config.get("layers_block_type")
    rest |= {} if types is None else {"layer_types": types}
    if isinstance(types, list) and types and {_MIXERS.get(str(one)) for one in types} == {"attention"}:
        return {**rest, "mamba_expand": 1, "mamba_n_heads": 1, "mamba_d_head": "auto"}
    return own_channels(rest)


def _experts(config: Mapping[str, Any], num_layers: int) -> list[str]:
    return ["dense" if config.get("num_local_experts") == 0 else "sparse"] * num_layers


GRANITEMOEHYBRID = family(
    "granitemoehybrid",
    ["granitemoehybrid"],
    MODEL
    + NORMS
    + """
    model.layers.{layer}.shared_mlp.input_linear.weight    (ffn + ffn) hidden
    model.layers.{layer}.shared_mlp.output_linear.weight   hidden ffn
    [attention]
    """
    + ATTENTION
    + QKV_BIAS
    + O_BIAS
    + "[mamba]"
    + MAMBA2
    + "[sparse]"
    + STACKED_EXPERTS,
    config_keys={
        **EXPERT_KEYS,
        "ffn": "shared_intermediate_size",
        "expert": "num_local_experts",
        "expert_ffn": "intermediate_size",
        **MAMBA_KEYS,
    },
    defaults=MAMBA_DEFAULTS,
    kinds=(listed("layer_types", _MIXERS, lambda config, num_layers: ["mamba"] * num_layers), Kinds(_experts)),
    warns=MAMBA_WARNS,
    norms={
        "model.layers.{layer}.input_layernorm.weight": (
            "model.layers.{layer}.self_attn.",
            "model.layers.{layer}.mamba.",
        ),
        "model.layers.{layer}.post_attention_layernorm.weight": (
            "model.layers.{layer}.shared_mlp.",
            "model.layers.{layer}.block_sparse_moe.",
        ),
        "model.norm.weight": PRE_NORMS["model.norm.weight"],
    },
    computed=EXPAND,
    engines=(head_size("vLLM", "SGLang", "llama.cpp", "MLX"),),
    normal=_normal,
)
