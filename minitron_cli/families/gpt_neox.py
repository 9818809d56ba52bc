"""GPT-NeoX (Pythia): queries, keys and values interleaved head by head; head_dim derived from hidden / heads."""

from minitron_cli.spec.axes import CONFIG_KEYS
from minitron_cli.spec.family import family

GPT_NEOX = family(
    "gpt_neox",
    ["gpt_neox"],
    """
    gpt_neox.embed_in.weight                                   vocab hidden
    gpt_neox.layers.{layer}.input_layernorm.weight             hidden
    gpt_neox.layers.{layer}.input_layernorm.bias               hidden
    # rows are [q0 k0 v0 q1 k1 v1 ...], head_dim rows each
    gpt_neox.layers.{layer}.attention.query_key_value.weight   (head 3 head_dim) hidden
    gpt_neox.layers.{layer}.attention.query_key_value.bias     (head 3 head_dim)         ?attention_bias
    gpt_neox.layers.{layer}.attention.dense.weight             hidden (head head_dim)
    gpt_neox.layers.{layer}.attention.dense.bias               hidden                    ?attention_bias
    gpt_neox.layers.{layer}.attention.bias                     -
    gpt_neox.layers.{layer}.attention.masked_bias              -
    gpt_neox.layers.{layer}.attention.rotary_emb.inv_freq      -
    gpt_neox.layers.{layer}.post_attention_layernorm.weight    hidden
    gpt_neox.layers.{layer}.post_attention_layernorm.bias      hidden
    gpt_neox.layers.{layer}.mlp.dense_h_to_4h.weight           ffn hidden
    gpt_neox.layers.{layer}.mlp.dense_h_to_4h.bias             ffn
    gpt_neox.layers.{layer}.mlp.dense_4h_to_h.weight           hidden ffn
    gpt_neox.layers.{layer}.mlp.dense_4h_to_h.bias             hidden
    gpt_neox.final_layer_norm.weight                           hidden
    gpt_neox.final_layer_norm.bias                             hidden
    embed_out.weight                                           vocab hidden              ?!tie_word_embeddings @disk
    lm_head.weight                                             vocab hidden              ?!tie_word_embeddings @memory
    """,
    config_keys={axis: key for axis, key in CONFIG_KEYS.items() if axis not in ("head_dim", "kv")},
    defaults={"attention_bias": True},
    norms={
        "gpt_neox.layers.{layer}.input_layernorm.weight": ("gpt_neox.layers.{layer}.attention.",),
        "gpt_neox.layers.{layer}.post_attention_layernorm.weight": ("gpt_neox.layers.{layer}.mlp.",),
        "gpt_neox.final_layer_norm.weight": ("embed_out.", "lm_head."),
    },
    centred=True,
)
