"""Mixtral: Llama's attention, and experts that have names of their own on disk."""

from minitron_cli.families.experts import EXPERT_KEYS
from minitron_cli.families.llama import LLAMA

_MLP = tuple(f".mlp.{name}_proj.{kind}" for name in ("gate", "up", "down") for kind in ("weight", "bias"))
_BIASES = tuple(f".self_attn.{name}_proj.bias" for name in "qkvo")

MIXTRAL = LLAMA.without(*_MLP, *_BIASES, "inv_freq").with_(
    """
    model.layers.{layer}.block_sparse_moe.gate.weight                 expert hidden                            @split
    model.layers.{layer}.block_sparse_moe.experts.{expert}.w1.weight  expert_ffn hidden                        @split
    model.layers.{layer}.block_sparse_moe.experts.{expert}.w2.weight  hidden expert_ffn                        @split
    model.layers.{layer}.block_sparse_moe.experts.{expert}.w3.weight  expert_ffn hidden                        @split
    model.layers.{layer}.mlp.gate.weight                              expert hidden                            @fused
    model.layers.{layer}.mlp.experts.gate_up_proj                     expert (expert_ffn + expert_ffn) hidden  @fused
    model.layers.{layer}.mlp.experts.down_proj                        expert hidden expert_ffn                 @fused
    """,
    name="mixtral",
    model_types=("mixtral",),
    config_keys={**EXPERT_KEYS, "expert": "num_local_experts", "expert_ffn": "intermediate_size"},
)
