"""Nemotron, the base of the first Minitron models: squared ReLU without a gate, LayerNorm1P with a bias."""

from minitron_cli.families.llama import LLAMA

NEMOTRON = LLAMA.without(".gate_proj.weight", ".gate_proj.bias", "inv_freq").with_(
    """
    model.layers.{layer}.input_layernorm.bias           hidden
    model.layers.{layer}.post_attention_layernorm.bias  hidden
    model.norm.bias                                     hidden
    """,
    name="nemotron",
    model_types=("nemotron",),
    rms_norms={},
)
