"""Command R (cohere), R7B and A (cohere2): attention and MLP read one LayerNorm without bias.

head_dim is hidden / heads. Command R+ normalises queries and keys by a LayerNorm that has weights for each head.
"""

from minitron_cli.families.llama import ATTENTION, GATED_MLP, MODEL, O_BIAS, QKV_BIAS
from minitron_cli.spec.assumptions import one_in
from minitron_cli.spec.axes import CONFIG_KEYS
from minitron_cli.spec.family import family

COHERE2 = family(
    "cohere2",
    ["cohere2"],
    MODEL
    + """
    model.layers.{layer}.input_layernorm.weight  hidden
    """
    + ATTENTION
    + QKV_BIAS
    + O_BIAS
    + GATED_MLP,
    config_keys={axis: key for axis, key in CONFIG_KEYS.items() if axis != "head_dim"},
    defaults={"tie_word_embeddings": True},
    norms={
        "model.layers.{layer}.input_layernorm.weight": (
            "model.layers.{layer}.self_attn.",
            "model.layers.{layer}.mlp.",
        ),
        "model.norm.weight": ("lm_head.",),
    },
    centred=True,
    engines=(
        one_in(4, "full_attention", "llama.cpp"),
        one_in("sliding_window_pattern", "full_attention", "MLX", otherwise=4),
    ),
)

COHERE = COHERE2.with_(
    """
    model.layers.{layer}.self_attn.q_norm.weight  head head_dim  ?use_qk_norm
    model.layers.{layer}.self_attn.k_norm.weight  kv head_dim    ?use_qk_norm
    """,
    name="cohere",
    model_types=("cohere",),
    engines=(),
)
