"""OLMo 2 and 3 (norms behind each half of a block) and OLMoE (experts): both norm queries and keys across all heads."""

from minitron_cli.families.experts import EXPERT_KEYS, EXPERTS
from minitron_cli.families.llama import LLAMA

_WARNS = dict.fromkeys(
    ("head", "kv"),
    "one norm spans the queries (and one the keys) of all heads, so that those which stay are scaled otherwise; "
    "distillation has to make up for it",
)
_QK_NORM = """
    model.layers.{layer}.self_attn.q_norm.weight  (head head_dim)
    model.layers.{layer}.self_attn.k_norm.weight  (kv head_dim)
"""
_PLAIN = LLAMA.without(".gate_proj.bias", ".up_proj.bias", ".down_proj.bias", "inv_freq")

OLMO2 = _PLAIN.without(".input_layernorm.weight").with_(
    _QK_NORM + "model.layers.{layer}.post_feedforward_layernorm.weight  hidden",
    name="olmo2",
    model_types=("olmo2", "olmo3"),
    rms_norms={},  # what reads the residual stream has no norm in front of it
    warns=_WARNS,
)

OLMOE = _PLAIN.without(".mlp.gate_proj.weight", ".mlp.up_proj.weight", ".mlp.down_proj.weight").with_(
    _QK_NORM + EXPERTS + "model.layers.{layer}.mlp.gate.weight  expert hidden",
    name="olmoe",
    model_types=("olmoe",),
    # The width of the q norm is hidden_size in transformers, which ties width and heads together.
    config_keys={axis: key for axis, key in EXPERT_KEYS.items() if axis != "head_dim"}
    | {"expert_ffn": "intermediate_size"},
    warns=_WARNS,
)
