"""Phi-3: one tensor for queries, keys and values, one for gate and up."""

from minitron_cli.families.llama import MODEL, NORMS, PRE_NORMS
from minitron_cli.spec.assumptions import head_size
from minitron_cli.spec.family import family

GATE_UP_MLP = """
    model.layers.{layer}.mlp.gate_up_proj.weight    (ffn + ffn) hidden
    model.layers.{layer}.mlp.down_proj.weight       hidden ffn
"""

PHI3 = family(
    "phi3",
    ["phi3"],
    MODEL
    + NORMS
    + """
    model.layers.{layer}.self_attn.qkv_proj.weight  (head head_dim + kv head_dim + kv head_dim) hidden
    model.layers.{layer}.self_attn.o_proj.weight    hidden (head head_dim)
    """
    + GATE_UP_MLP,
    norms=PRE_NORMS,
    engines=(head_size("llama.cpp", "MLX", "CTranslate2"),),
)
