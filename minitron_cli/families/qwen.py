"""Qwen2 (biases on q, k and v), Qwen3 (a norm on each head's queries and keys), and their mixtures of experts."""

from minitron_cli.families.experts import EXPERT_KEYS, EXPERTS
from minitron_cli.families.llama import LLAMA

QWEN2 = LLAMA.without(".o_proj.bias", "gate_proj.bias", "up_proj.bias", "down_proj.bias", "inv_freq").with_(
    """
    model.layers.{layer}.self_attn.q_proj.bias    (head head_dim)
    model.layers.{layer}.self_attn.k_proj.bias    (kv head_dim)
    model.layers.{layer}.self_attn.v_proj.bias    (kv head_dim)
    """,
    name="qwen2",
    model_types=("qwen2",),
    per_layer=("layer_types",),
)

QWEN3 = LLAMA.without("gate_proj.bias", "up_proj.bias", "down_proj.bias", "inv_freq").with_(
    """
    model.layers.{layer}.self_attn.q_norm.weight  head_dim
    model.layers.{layer}.self_attn.k_norm.weight  head_dim
    """,
    name="qwen3",
    model_types=("qwen3",),
    per_layer=("layer_types",),
)

_DENSE = (".mlp.gate_proj.weight", ".mlp.up_proj.weight", ".mlp.down_proj.weight")
# A table has one kind of layer; published checkpoints of both families are sparse throughout.
_ALL_SPARSE = {"decoder_sparse_step": 1, "mlp_only_layers": []}

QWEN3_MOE = QWEN3.without(*_DENSE).with_(
    EXPERTS + "model.layers.{layer}.mlp.gate.weight    expert hidden",
    name="qwen3_moe",
    model_types=("qwen3_moe",),
    config_keys={**EXPERT_KEYS, "expert_ffn": "moe_intermediate_size"},
    requires=_ALL_SPARSE,
)

QWEN2_MOE = QWEN2.without(*_DENSE, ".q_proj.bias", ".k_proj.bias", ".v_proj.bias").with_(
    EXPERTS
    + """
    model.layers.{layer}.self_attn.q_proj.bias                (head head_dim)       ?qkv_bias
    model.layers.{layer}.self_attn.k_proj.bias                (kv head_dim)         ?qkv_bias
    model.layers.{layer}.self_attn.v_proj.bias                (kv head_dim)         ?qkv_bias
    model.layers.{layer}.mlp.gate.weight                      expert hidden
    model.layers.{layer}.mlp.shared_expert.gate_proj.weight   shared_ffn hidden
    model.layers.{layer}.mlp.shared_expert.up_proj.weight     shared_ffn hidden
    model.layers.{layer}.mlp.shared_expert.down_proj.weight   hidden shared_ffn
    model.layers.{layer}.mlp.shared_expert_gate.weight        1 hidden
    """,
    name="qwen2_moe",
    model_types=("qwen2_moe",),
    config_keys={**EXPERT_KEYS, "expert_ffn": "moe_intermediate_size", "shared_ffn": "shared_expert_intermediate_size"},
    defaults={"qkv_bias": True},
    requires=_ALL_SPARSE,
)
