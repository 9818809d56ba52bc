"""StableLM: LayerNorm with bias; the size of a head is derived from hidden / heads."""

from minitron_cli.families.llama import ATTENTION, GATED_MLP, INV_FREQ, MODEL, PRE_NORMS, QKV_BIAS
from minitron_cli.spec.axes import CONFIG_KEYS
from minitron_cli.spec.family import family

STABLELM = family(
    "stablelm",
    ["stablelm"],
    MODEL
    + """
    model.layers.{layer}.input_layernorm.weight           hidden
    model.layers.{layer}.input_layernorm.bias             hidden
    """
    + ATTENTION
    + QKV_BIAS.replace("?attention_bias", "?use_qkv_bias")
    + INV_FREQ
    + GATED_MLP
    + """
    model.layers.{layer}.post_attention_layernorm.weight  hidden  ?!use_parallel_residual
    model.layers.{layer}.post_attention_layernorm.bias    hidden  ?!use_parallel_residual
    model.norm.bias                                       hidden
    """,
    config_keys={axis: key for axis, key in CONFIG_KEYS.items() if axis != "head_dim"},
    norms=PRE_NORMS,
    centred=True,
    requires={"qk_layernorm": False},
)
