"""StarCoder2: LayerNorm, biases nearly everywhere, an MLP without a gate."""

from minitron_cli.families.llama import LLAMA

_MLP = tuple(f".mlp.{name}_proj.{kind}" for name in ("gate", "up", "down") for kind in ("weight", "bias"))

STARCODER2 = LLAMA.without(*_MLP, "inv_freq").with_(
    """
    model.layers.{layer}.input_layernorm.bias           hidden
    model.layers.{layer}.self_attn.q_proj.bias          (head head_dim)  ?use_bias
    model.layers.{layer}.self_attn.k_proj.bias          (kv head_dim)    ?use_bias
    model.layers.{layer}.self_attn.v_proj.bias          (kv head_dim)    ?use_bias
    model.layers.{layer}.self_attn.o_proj.bias          hidden           ?use_bias
    model.layers.{layer}.post_attention_layernorm.bias  hidden
    model.layers.{layer}.mlp.c_fc.weight                ffn hidden
    model.layers.{layer}.mlp.c_fc.bias                  ffn              ?use_bias
    model.layers.{layer}.mlp.c_proj.weight              hidden ffn
    model.layers.{layer}.mlp.c_proj.bias                hidden           ?use_bias
    model.norm.bias                                     hidden
    """,
    name="starcoder2",
    model_types=("starcoder2",),
    rms_norms={},
    defaults={"use_bias": True, "tie_word_embeddings": True},
)
