"""Qwen2 (biases on q, k and v), Qwen3 (a norm on each head's queries and keys), and their mixtures of experts."""

from minitron_cli.families.experts import EXPERT_KEYS, EXPERTS, ROUTER
from minitron_cli.families.llama import ATTENTION, GATED_MLP, MODEL, NORMS, O_BIAS, PRE_NORMS, QKV_BIAS
from minitron_cli.spec.family import family

QK_NORM = """
    model.layers.{layer}.self_attn.q_norm.weight              head_dim
    model.layers.{layer}.self_attn.k_norm.weight              head_dim
"""
_QWEN2 = MODEL + NORMS + ATTENTION
_QWEN3 = MODEL + NORMS + ATTENTION + QKV_BIAS + O_BIAS + QK_NORM

QWEN2 = family("qwen2", ["qwen2"], _QWEN2 + QKV_BIAS.replace("?attention_bias", "") + GATED_MLP, rms_norms=PRE_NORMS)
QWEN3 = family("qwen3", ["qwen3"], _QWEN3 + GATED_MLP, rms_norms=PRE_NORMS)

# A table has one kind of layer; published checkpoints of both families are sparse throughout.
_ALL_SPARSE = {"decoder_sparse_step": 1, "mlp_only_layers": []}

QWEN3_MOE = family(
    "qwen3_moe",
    ["qwen3_moe"],
    _QWEN3 + EXPERTS + ROUTER,
    defaults={"norm_topk_prob": False},
    config_keys={**EXPERT_KEYS, "expert_ffn": "moe_intermediate_size"},
    requires=_ALL_SPARSE,
    rms_norms=PRE_NORMS,
)

QWEN2_MOE = family(
    "qwen2_moe",
    ["qwen2_moe"],
    _QWEN2
    + QKV_BIAS.replace("?attention_bias", "?qkv_bias")
    + EXPERTS
    + ROUTER
    + """
    model.layers.{layer}.mlp.shared_expert.gate_proj.weight   shared_ffn hidden
    model.layers.{layer}.mlp.shared_expert.up_proj.weight     shared_ffn hidden
    model.layers.{layer}.mlp.shared_expert.down_proj.weight   hidden shared_ffn
    model.layers.{layer}.mlp.shared_expert_gate.weight        1 hidden
    """,
    config_keys={**EXPERT_KEYS, "expert_ffn": "moe_intermediate_size", "shared_ffn": "shared_expert_intermediate_size"},
    defaults={"qkv_bias": True, "norm_topk_prob": False},
    requires=_ALL_SPARSE,
    rms_norms=PRE_NORMS,
)
