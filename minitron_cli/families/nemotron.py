"""Nemotron, the base of the first Minitron models, Jais 2 and Arcee: squared ReLU without a gate.

Nemotron has LayerNorm1P with a bias, Jais 2 LayerNorm and biases everywhere, Arcee RMS norms.
"""

from minitron_cli.families.llama import ATTENTION, MODEL, NORMS, O_BIAS, PRE_NORMS, QKV_BIAS
from minitron_cli.spec.assumptions import absent, head_size
from minitron_cli.spec.family import family

NORMS_BIAS = """
    model.layers.{layer}.input_layernorm.bias           hidden
    model.layers.{layer}.post_attention_layernorm.bias  hidden
    model.norm.bias                                     hidden
"""

PLAIN_MLP = """
    model.layers.{layer}.mlp.up_proj.weight             ffn hidden
    model.layers.{layer}.mlp.up_proj.bias               ffn         ?mlp_bias
    model.layers.{layer}.mlp.down_proj.weight           hidden ffn
    model.layers.{layer}.mlp.down_proj.bias             hidden      ?mlp_bias
"""

NEMOTRON = family(
    "nemotron",
    ["nemotron"],
    MODEL + NORMS + NORMS_BIAS + ATTENTION + QKV_BIAS + O_BIAS + PLAIN_MLP,
    norms=PRE_NORMS,
    norm_offset=1.0,
    centred=True,
    engines=(head_size("llama.cpp"),),
)

JAIS2 = NEMOTRON.with_(
    "",
    name="jais2",
    model_types=("jais2",),
    defaults={"attention_bias": True, "mlp_bias": True},
    norm_offset=0.0,
    engines=(),
)

ARCEE = family(
    "arcee",
    ["arcee"],
    MODEL + NORMS + ATTENTION + QKV_BIAS + O_BIAS + PLAIN_MLP,
    norms=PRE_NORMS,
    engines=(absent("MLX"),),
)
