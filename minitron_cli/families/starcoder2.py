"""StarCoder2: LayerNorm, biases nearly everywhere, an MLP without a gate."""

from minitron_cli.families.llama import ATTENTION, MODEL, NORMS, O_BIAS, PRE_NORMS, QKV_BIAS
from minitron_cli.families.nemotron import NORMS_BIAS
from minitron_cli.spec.assumptions import head_size
from minitron_cli.spec.family import family

STARCODER2 = family(
    "starcoder2",
    ["starcoder2"],
    MODEL
    + NORMS
    + NORMS_BIAS
    + ATTENTION
    + (QKV_BIAS + O_BIAS).replace("?attention_bias", "?use_bias")
    + """
    model.layers.{layer}.mlp.c_fc.weight      ffn hidden
    model.layers.{layer}.mlp.c_fc.bias        ffn         ?use_bias
    model.layers.{layer}.mlp.c_proj.weight    hidden ffn
    model.layers.{layer}.mlp.c_proj.bias      hidden      ?use_bias
    """,
    defaults={"use_bias": True, "tie_word_embeddings": True},
    norms=PRE_NORMS,
    centred=True,
    engines=(head_size("SGLang", "llama.cpp", "MLX"),),
)
