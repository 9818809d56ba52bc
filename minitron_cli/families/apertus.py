"""Apertus: a norm on each head's queries and keys, and an MLP without a gate whose activation has weights (xIELU)."""

from minitron_cli.families.llama import ATTENTION, MODEL, NORMS, O_BIAS, QKV_BIAS
from minitron_cli.families.qwen import QK_NORM
from minitron_cli.spec.assumptions import head_size
from minitron_cli.spec.family import family

APERTUS = family(
    "apertus",
    ["apertus"],
    MODEL
    + NORMS.replace("input_layernorm", "attention_layernorm").replace("post_attention", "feedforward")
    + ATTENTION
    + QKV_BIAS
    + O_BIAS
    + QK_NORM
    + """
    model.layers.{layer}.mlp.up_proj.weight       ffn hidden
    model.layers.{layer}.mlp.down_proj.weight     hidden ffn
    model.layers.{layer}.mlp.act_fn.alpha_p       1
    model.layers.{layer}.mlp.act_fn.alpha_n       1
    model.layers.{layer}.mlp.act_fn.beta          []
    model.layers.{layer}.mlp.act_fn.eps           []
    """,
    norms={
        "model.layers.{layer}.attention_layernorm.weight": ("model.layers.{layer}.self_attn.",),
        "model.layers.{layer}.feedforward_layernorm.weight": ("model.layers.{layer}.mlp.",),
        "model.norm.weight": ("lm_head.",),
    },
    engines=(head_size("MLX"),),
)
