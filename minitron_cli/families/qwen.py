"""Qwen2 (biases on q, k and v), Qwen3 (a norm on each head's queries and keys), and their mixtures of experts."""

from minitron_cli.families.experts import EXPERT_KEYS, EXPERTS, ROUTER, TO_MLP
from minitron_cli.families.llama import ATTENTION, GATED_MLP, MODEL, NORMS, O_BIAS, PRE_NORMS, QKV_BIAS
from minitron_cli.spec.assumptions import head_size, sparse_throughout
from minitron_cli.spec.family import Dense, family
from minitron_cli.spec.kinds import SPARSE_STEPS, listed

QK_NORM = """
    model.layers.{layer}.self_attn.q_norm.weight              head_dim
    model.layers.{layer}.self_attn.k_norm.weight              head_dim
"""
_QWEN2 = MODEL + NORMS + ATTENTION
_QWEN3 = MODEL + NORMS + ATTENTION + QKV_BIAS + O_BIAS + QK_NORM

QWEN2 = family(
    "qwen2",
    ["qwen2"],
    _QWEN2 + QKV_BIAS.replace("?attention_bias", "") + GATED_MLP,
    norms=PRE_NORMS,
    engines=(head_size("vLLM", "llama.cpp", "MLX", "CTranslate2"),),
)
QWEN3 = family("qwen3", ["qwen3"], _QWEN3 + GATED_MLP, norms=PRE_NORMS)

SHARED_EXPERT = """
    model.layers.{layer}.mlp.shared_expert.gate_proj.weight   shared_ffn hidden
    model.layers.{layer}.mlp.shared_expert.up_proj.weight     shared_ffn hidden
    model.layers.{layer}.mlp.shared_expert.down_proj.weight   hidden shared_ffn
    model.layers.{layer}.mlp.shared_expert_gate.weight        1 hidden
"""
_KEYS = {**EXPERT_KEYS, "ffn": "intermediate_size", "expert_ffn": "moe_intermediate_size"}

QWEN3_MOE = family(
    "qwen3_moe",
    ["qwen3_moe"],
    _QWEN3 + "[dense]" + GATED_MLP + "[sparse]" + EXPERTS + ROUTER,
    defaults={"norm_topk_prob": False},
    config_keys=_KEYS,
    kinds=(SPARSE_STEPS,),
    norms=PRE_NORMS,
    # With use_sliding_window every layer has the window; a dense model's begin at this one.
    dense=Dense("qwen3", TO_MLP, {"max_window_layers": 0}),
    engines=(sparse_throughout("llama.cpp"),),
)

# JetBrains' Mellum 2: Qwen3 with experts, whose layers are listed one by one.
MELLUM = QWEN3_MOE.with_(
    "",
    name="mellum",
    model_types=("mellum",),
    defaults={"norm_topk_prob": True},
    kinds=(listed("mlp_layer_types", {"dense": "dense", "sparse": "sparse"}, lambda config, n: ["sparse"] * n),),
    per_layer=("layer_types", "mlp_layer_types"),
    predictors=("num_nextn_predict_layers", "num_mtp_layers"),
    dense=None,
    engines=(),
)

QWEN2_MOE = family(
    "qwen2_moe",
    ["qwen2_moe"],
    _QWEN2
    + QKV_BIAS.replace("?attention_bias", "?qkv_bias")
    + "[dense]"
    + GATED_MLP
    + "[sparse]"
    + EXPERTS
    + ROUTER
    + SHARED_EXPERT,
    config_keys={**_KEYS, "shared_ffn": "shared_expert_intermediate_size"},
    defaults={"qkv_bias": True, "norm_topk_prob": False},
    kinds=(SPARSE_STEPS,),
    norms=PRE_NORMS,
    engines=(head_size("vLLM", "SGLang", "llama.cpp", "MLX"), sparse_throughout("llama.cpp", "MLX")),
)
