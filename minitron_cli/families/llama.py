"""Llama and what shares its layout: Mistral and Ministral, Granite, InternLM 3, IQuest-Coder.

Seed-OSS and ERNIE 4.5 differ in their biases, SmolLM3 leaves the rotation out of some layers.

Most other tables are composed of the same parts.
"""

from minitron_cli.spec.assumptions import head_size, one_in
from minitron_cli.spec.family import family

MODEL = """
    model.embed_tokens.weight                              vocab hidden
    model.norm.weight                                      hidden
    lm_head.weight                                         vocab hidden             ?!tie_word_embeddings
"""
NORMS = """
    model.layers.{layer}.input_layernorm.weight            hidden
    model.layers.{layer}.post_attention_layernorm.weight   hidden
"""
ATTENTION = """
    model.layers.{layer}.self_attn.q_proj.weight           (head head_dim) hidden
    model.layers.{layer}.self_attn.k_proj.weight           (kv head_dim) hidden
    model.layers.{layer}.self_attn.v_proj.weight           (kv head_dim) hidden
    model.layers.{layer}.self_attn.o_proj.weight           hidden (head head_dim)
"""
QKV_BIAS = """
    model.layers.{layer}.self_attn.q_proj.bias             (head head_dim)          ?attention_bias
    model.layers.{layer}.self_attn.k_proj.bias             (kv head_dim)            ?attention_bias
    model.layers.{layer}.self_attn.v_proj.bias             (kv head_dim)            ?attention_bias
"""
O_BIAS = """
    model.layers.{layer}.self_attn.o_proj.bias             hidden                   ?attention_bias
"""
GATED_MLP = """
    model.layers.{layer}.mlp.gate_proj.weight              ffn hidden
    model.layers.{layer}.mlp.up_proj.weight                ffn hidden
    model.layers.{layer}.mlp.down_proj.weight              hidden ffn
"""
GATED_MLP_BIAS = """
    model.layers.{layer}.mlp.gate_proj.bias                ffn                      ?mlp_bias
    model.layers.{layer}.mlp.up_proj.bias                  ffn                      ?mlp_bias
    model.layers.{layer}.mlp.down_proj.bias                hidden                   ?mlp_bias
"""
INV_FREQ = """
    model.layers.{layer}.self_attn.rotary_emb.inv_freq     -
"""
# Each norm, and what the names of the weights that read its output begin with.
PRE_NORMS = {
    "model.layers.{layer}.input_layernorm.weight": ("model.layers.{layer}.self_attn.",),
    "model.layers.{layer}.post_attention_layernorm.weight": ("model.layers.{layer}.mlp.",),
    "model.norm.weight": ("lm_head.",),
}

# Why the residual stream cannot be rotated where a block's halves pass a norm on their way back into it.
POST_NORMED = (
    "norms after a block's halves have a weight for each channel: what they add could be turned exactly only where all "
    "weights of a norm are equal"
)

LLAMA = family(
    "llama",
    ["llama", "mistral", "ministral", "ministral3", "granite", "internlm3", "iquestcoder"],
    MODEL + NORMS + ATTENTION + QKV_BIAS + O_BIAS + GATED_MLP + GATED_MLP_BIAS + INV_FREQ,
    norms=PRE_NORMS,
    engines=(head_size("CTranslate2", types=("llama",)), head_size("llama.cpp", "MLX", types=("granite",))),
)

SMOLLM3 = LLAMA.with_(
    "",
    name="smollm3",
    model_types=("smollm3",),
    defaults={"tie_word_embeddings": True},
    per_layer=("layer_types", "no_rope_layers"),
    engines=(one_in(4, 0, "llama.cpp", key="no_rope_layers"),),
)

SEED_OSS = LLAMA.with_(
    O_BIAS.replace("?attention_bias", "?attention_out_bias"),
    name="seed_oss",
    model_types=("seed_oss",),
    engines=(),
    defaults={"attention_bias": True},
)

ERNIE4_5 = family(
    "ernie4_5",
    ["ernie4_5"],
    MODEL
    + NORMS
    + ATTENTION
    + GATED_MLP
    + (QKV_BIAS + O_BIAS).replace("?attention_bias", "?use_bias")
    + GATED_MLP_BIAS.replace("?mlp_bias", "?use_bias"),
    defaults={"tie_word_embeddings": True},
    norms=PRE_NORMS,
)
