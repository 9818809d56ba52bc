"""StableLM: LayerNorm with bias; the size of a head is derived from hidden / heads."""

from minitron_cli.families.llama import LLAMA
from minitron_cli.spec.axes import CONFIG_KEYS

STABLELM = LLAMA.without("o_proj.bias", ".gate_proj.bias", ".up_proj.bias", ".down_proj.bias").with_(
    """
    model.layers.{layer}.self_attn.q_proj.bias            (head head_dim)  ?use_qkv_bias
    model.layers.{layer}.self_attn.k_proj.bias            (kv head_dim)    ?use_qkv_bias
    model.layers.{layer}.self_attn.v_proj.bias            (kv head_dim)    ?use_qkv_bias
    model.layers.{layer}.input_layernorm.bias             hidden
    model.layers.{layer}.post_attention_layernorm.weight  hidden           ?!use_parallel_residual
    model.layers.{layer}.post_attention_layernorm.bias    hidden           ?!use_parallel_residual
    model.norm.bias                                       hidden
    """,
    name="stablelm",
    model_types=("stablelm",),
    rms_norms={},
    config_keys={axis: key for axis, key in CONFIG_KEYS.items() if axis != "head_dim"},
    requires={"qk_layernorm": False},
)
