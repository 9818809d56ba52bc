"""Hunyuan (dense): Llama with a norm on each head's queries and keys, under names of its own."""

from minitron_cli.families.llama import ATTENTION, GATED_MLP, MODEL, NORMS, O_BIAS, PRE_NORMS, QKV_BIAS
from minitron_cli.spec.family import family

HUNYUAN_DENSE = family(
    "hunyuan_v1_dense",
    ["hunyuan_v1_dense"],
    MODEL
    + NORMS
    + ATTENTION
    + QKV_BIAS
    + O_BIAS
    + GATED_MLP
    + """
    model.layers.{layer}.self_attn.query_layernorm.weight  head_dim
    model.layers.{layer}.self_attn.key_layernorm.weight    head_dim
    """,
    norms=PRE_NORMS,
)
