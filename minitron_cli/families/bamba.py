"""Bamba (Mamba-2 layers, attention in some) and Falcon-H1 (both side by side in every layer)."""

from collections.abc import Mapping
from typing import Any

from minitron_cli.families.llama import ATTENTION, MODEL, O_BIAS, QKV_BIAS
from minitron_cli.families.mamba2 import EXPAND, MAMBA2, MAMBA_DEFAULTS, MAMBA_KEYS, MAMBA_WARNS, own_channels
from minitron_cli.spec.assumptions import absent, head_size
from minitron_cli.spec.axes import CONFIG_KEYS
from minitron_cli.spec.family import family
from minitron_cli.spec.kinds import Kinds

_TOP = (
    MODEL.replace("model.norm.weight", "model.final_layernorm.weight")
    + """
    model.layers.{layer}.input_layernorm.weight            hidden
    model.layers.{layer}.pre_ff_layernorm.weight           hidden
    model.layers.{layer}.feed_forward.gate_proj.weight     ffn hidden
    model.layers.{layer}.feed_forward.up_proj.weight       ffn hidden
    model.layers.{layer}.feed_forward.down_proj.weight     hidden ffn
    model.layers.{layer}.feed_forward.gate_proj.bias       ffn             ?mlp_bias
    model.layers.{layer}.feed_forward.up_proj.bias         ffn             ?mlp_bias
    model.layers.{layer}.feed_forward.down_proj.bias       hidden          ?mlp_bias
"""
)
_NORMS = {
    "model.layers.{layer}.input_layernorm.weight": ("model.layers.{layer}.self_attn.", "model.layers.{layer}.mamba."),
    "model.layers.{layer}.pre_ff_layernorm.weight": ("model.layers.{layer}.feed_forward.",),
    "model.final_layernorm.weight": ("lm_head.",),
}


def _mixers(config: Mapping[str, Any], num_layers: int) -> list[str]:
    attention = config.get("attn_layer_indices") or []
    return ["attention" if layer in attention else "mamba" for layer in range(num_layers)]


BAMBA = family(
    "bamba",
    ["bamba"],
    _TOP + "[attention]" + ATTENTION + QKV_BIAS + O_BIAS + "[mamba]" + MAMBA2,
    config_keys={**CONFIG_KEYS, **MAMBA_KEYS},
    defaults=MAMBA_DEFAULTS,
    per_layer=(),
    per_layer_index=("attn_layer_indices",),
    kinds=(Kinds(_mixers),),
    warns=MAMBA_WARNS,
    norms=_NORMS,
    computed=EXPAND,
    engines=(absent("vLLM", "MLX"), head_size("llama.cpp")),
    normal=own_channels,
)

FALCON_H1 = family(
    "falcon_h1",
    ["falcon_h1"],
    _TOP
    + ATTENTION
    + QKV_BIAS
    + O_BIAS
    + MAMBA2.replace(
        "mamba.norm.weight             (mamba_head mamba_dim)",
        "mamba.norm.weight (mamba_head mamba_dim) ?mamba_rms_norm",
    ).replace("hidden                               ?mamba_proj_bias", "hidden ?projectors_bias"),
    config_keys={**CONFIG_KEYS, **MAMBA_KEYS},
    defaults={**MAMBA_DEFAULTS, "mamba_d_ssm": 1024},
    per_layer=(),
    warns=MAMBA_WARNS,
    norms=_NORMS,
    computed={"mamba_d_ssm": "mamba_head*mamba_dim"},
    normal=own_channels,
)
