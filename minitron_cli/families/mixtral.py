"""Mixtral: Llama's attention without biases, and experts that have names of their own on disk."""

from minitron_cli.families.experts import DOWN, EXPERT_KEYS, GATE, TO_MLP, UP
from minitron_cli.families.llama import ATTENTION, MODEL, NORMS, PRE_NORMS
from minitron_cli.spec.assumptions import head_size
from minitron_cli.spec.family import Dense, family

_SPLIT = "model.layers.{layer}.block_sparse_moe.experts.{expert}."

MIXTRAL = family(
    "mixtral",
    ["mixtral"],
    MODEL
    + NORMS
    + ATTENTION
    + """
    model.layers.{layer}.block_sparse_moe.gate.weight                 expert hidden                            @split
    model.layers.{layer}.block_sparse_moe.experts.{expert}.w1.weight  expert_ffn hidden                        @split
    model.layers.{layer}.block_sparse_moe.experts.{expert}.w2.weight  hidden expert_ffn                        @split
    model.layers.{layer}.block_sparse_moe.experts.{expert}.w3.weight  expert_ffn hidden                        @split
    model.layers.{layer}.mlp.gate.weight                              expert hidden                            @fused
    model.layers.{layer}.mlp.experts.gate_up_proj                     expert (expert_ffn + expert_ffn) hidden  @fused
    model.layers.{layer}.mlp.experts.down_proj                        expert hidden expert_ffn                 @fused
    """,
    config_keys={**EXPERT_KEYS, "expert": "num_local_experts", "expert_ffn": "intermediate_size"},
    norms={
        **PRE_NORMS,
        "model.layers.{layer}.post_attention_layernorm.weight": (
            "model.layers.{layer}.mlp.",
            "model.layers.{layer}.block_sparse_moe.",
        ),
    },
    dense=Dense(
        "mistral", {**TO_MLP, f"{_SPLIT}w1.weight": GATE, f"{_SPLIT}w2.weight": DOWN, f"{_SPLIT}w3.weight": UP}
    ),
    engines=(head_size("SGLang", "MLX"),),
)
