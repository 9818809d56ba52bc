"""Granite 3 with experts, all of a layer in one tensor on disk."""

from minitron_cli.families.experts import DOWN, EXPERT_KEYS, GATE, UP
from minitron_cli.families.llama import ATTENTION, MODEL, NORMS, PRE_NORMS
from minitron_cli.spec.assumptions import head_size
from minitron_cli.spec.family import Dense, family

STACKED_EXPERTS = """
    model.layers.{layer}.block_sparse_moe.router.layer.weight    expert hidden                            @linear
    model.layers.{layer}.block_sparse_moe.input_linear.weight    expert (expert_ffn + expert_ffn) hidden  @linear
    model.layers.{layer}.block_sparse_moe.output_linear.weight   expert hidden expert_ffn                 @linear
    model.layers.{layer}.block_sparse_moe.router.weight          expert hidden                            @fused
    model.layers.{layer}.block_sparse_moe.experts.gate_up_proj   expert (expert_ffn + expert_ffn) hidden  @fused
    model.layers.{layer}.block_sparse_moe.experts.down_proj      expert hidden expert_ffn                 @fused
"""

GRANITEMOE = family(
    "granitemoe",
    ["granitemoe"],
    MODEL + NORMS + ATTENTION + STACKED_EXPERTS,
    config_keys={**EXPERT_KEYS, "expert": "num_local_experts", "expert_ffn": "intermediate_size"},
    norms={
        **PRE_NORMS,
        "model.layers.{layer}.post_attention_layernorm.weight": ("model.layers.{layer}.block_sparse_moe.",),
    },
    dense=Dense(
        "granite",
        {
            "model.layers.{layer}.block_sparse_moe.input_linear.weight": (*GATE, *UP),
            "model.layers.{layer}.block_sparse_moe.output_linear.weight": DOWN,
            "model.layers.{layer}.block_sparse_moe.experts.gate_up_proj": (*GATE, *UP),
            "model.layers.{layer}.block_sparse_moe.experts.down_proj": DOWN,
        },
    ),
    engines=(head_size("vLLM", "SGLang", "llama.cpp", "MLX"),),
)
