"""Qwen3-Next and Qwen3.5: gated delta networks (linear attention), and gated attention in every fourth layer.

Value heads lie inside key heads as query heads lie inside KV groups. Each query head has a gate beside it.
"""

from minitron_cli.families.experts import EXPERT_KEYS, EXPERTS, ROUTER
from minitron_cli.families.llama import ATTENTION, GATED_MLP, MODEL, NORMS, O_BIAS, PRE_NORMS, QKV_BIAS
from minitron_cli.families.qwen import QK_NORM, SHARED_EXPERT
from minitron_cli.spec.assumptions import one_in
from minitron_cli.spec.axes import CONFIG_KEYS
from minitron_cli.spec.family import family
from minitron_cli.spec.kinds import SPARSE_STEPS, every, listed

_GATED_ATTENTION = "[full]" + (ATTENTION + QKV_BIAS).replace(
    "(head head_dim) hidden", "(head 2 head_dim) hidden"
).replace("q_proj.bias             (head", "q_proj.bias             (head 2")
_QKV = "(key_head key_dim + key_head key_dim + value_head value_dim)"
_LINEAR = """
    [linear]
    model.layers.{layer}.linear_attn.conv1d.weight        QKV 1 conv
    model.layers.{layer}.linear_attn.A_log                value_head
    model.layers.{layer}.linear_attn.dt_bias              value_head
    model.layers.{layer}.linear_attn.norm.weight          value_dim
    model.layers.{layer}.linear_attn.out_proj.weight      hidden (value_head value_dim)
""".replace("QKV", _QKV)
_QWEN3_5 = (
    _LINEAR
    + """
    model.layers.{layer}.linear_attn.in_proj_qkv.weight   QKV hidden
    model.layers.{layer}.linear_attn.in_proj_z.weight     (value_head value_dim) hidden
    model.layers.{layer}.linear_attn.in_proj_a.weight     value_head hidden
    model.layers.{layer}.linear_attn.in_proj_b.weight     value_head hidden
""".replace("QKV", _QKV)
)
# For each key head [q k v0 v1 .. z0 z1 ..] and [b0 b1 .. a0 a1 ..]: of the right sizes here, but not in this order.
_QWEN3_NEXT = (
    _LINEAR
    + """
    model.layers.{layer}.linear_attn.in_proj_qkvz.weight  (key_head 2 key_dim + value_head 2 value_dim) hidden
    model.layers.{layer}.linear_attn.in_proj_ba.weight    (value_head 2) hidden
"""
)
_LINEAR_KEYS = {
    "value_head": "linear_num_value_heads",
    "key_head": "linear_num_key_heads",
    "value_dim": "linear_value_head_dim",
    "key_dim": "linear_key_head_dim",
    "conv": "linear_conv_kernel_dim",
}
_SPARSE_KEYS = {
    **EXPERT_KEYS,
    "expert_ffn": "moe_intermediate_size",
    "shared_ffn": "shared_expert_intermediate_size",
    **_LINEAR_KEYS,
}
_MIXERS = listed(
    "layer_types",
    {"linear_attention": "linear", "full_attention": "full"},
    lambda config, num_layers: every(config.get("full_attention_interval") or 4, "full", "linear", num_layers),
)
_NORMS = {
    **PRE_NORMS,
    "model.layers.{layer}.input_layernorm.weight": (
        "model.layers.{layer}.self_attn.",
        "model.layers.{layer}.linear_attn.",
    ),
}
_ATTENTION = _GATED_ATTENTION + O_BIAS + QK_NORM
_INTERLEAVED = (
    "the input matrices hold queries, keys, values and gates of each key head side by side, which no line can describe"
)

_ENGINES = (one_in("full_attention_interval", "full_attention", "SGLang", "MLX", otherwise=4),)

QWEN3_5 = family(
    "qwen3_5",
    ["qwen3_5_text"],
    MODEL + NORMS + GATED_MLP + _QWEN3_5 + _ATTENTION,
    config_keys={**CONFIG_KEYS, **_LINEAR_KEYS},
    kinds=(_MIXERS,),
    predictors=("mtp_num_hidden_layers",),
    engines=_ENGINES,
    norms=_NORMS,
    norm_offset=1.0,
)

QWEN3_5_MOE = family(
    "qwen3_5_moe",
    ["qwen3_5_moe_text"],
    MODEL + NORMS + EXPERTS + ROUTER + SHARED_EXPERT + _QWEN3_5 + _ATTENTION,
    config_keys=_SPARSE_KEYS,
    kinds=(_MIXERS,),
    predictors=("mtp_num_hidden_layers",),
    engines=_ENGINES,
    norms=_NORMS,
    norm_offset=1.0,
)

QWEN3_NEXT = family(
    "qwen3_next",
    ["qwen3_next"],
    MODEL + NORMS + _QWEN3_NEXT + _ATTENTION + "[dense]" + GATED_MLP + "[sparse]" + EXPERTS + ROUTER + SHARED_EXPERT,
    config_keys={**_SPARSE_KEYS, "ffn": "intermediate_size"},
    kinds=(_MIXERS, SPARSE_STEPS),
    refuses={"value_head": _INTERLEAVED, "key_head": _INTERLEAVED},
    predictors=("mtp_num_hidden_layers",),
    engines=_ENGINES,
    norms=_NORMS,
    norm_offset=1.0,
)
