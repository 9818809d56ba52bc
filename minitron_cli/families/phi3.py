"""Phi-3: one tensor for queries, keys and values, one for gate and up."""

from minitron_cli.families.llama import LLAMA

_SPLIT = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
_BIASES = tuple(f".{name}.bias" for name in (*_SPLIT, "o_proj", "down_proj"))

PHI3 = LLAMA.without(*(f".{name}.weight" for name in _SPLIT), *_BIASES, "inv_freq").with_(
    """
    model.layers.{layer}.self_attn.qkv_proj.weight  (head head_dim + kv head_dim + kv head_dim) hidden
    model.layers.{layer}.mlp.gate_up_proj.weight    (ffn + ffn) hidden
    """,
    name="phi3",
    model_types=("phi3",),
)
