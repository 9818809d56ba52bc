"""Gemma multiplies its embeddings by sqrt(hidden); 2 and 3 have norms before and behind both halves of a block."""

from minitron_cli.families.llama import LLAMA

GEMMA = LLAMA.without(".gate_proj.bias", ".up_proj.bias", ".down_proj.bias", "inv_freq").with_(
    "",
    name="gemma",
    model_types=("gemma",),
    defaults={"tie_word_embeddings": True},
    repair="sqrt_hidden",
    norm_offset=1.0,
)

GEMMA2 = GEMMA.with_(
    """
    model.layers.{layer}.pre_feedforward_layernorm.weight   hidden
    model.layers.{layer}.post_feedforward_layernorm.weight  hidden
    """,
    name="gemma2",
    model_types=("gemma2",),
    rms_norms={},  # the norms behind a block's halves see single channels
)

GEMMA3 = GEMMA2.with_(
    """
    model.layers.{layer}.self_attn.q_norm.weight  head_dim
    model.layers.{layer}.self_attn.k_norm.weight  head_dim
    """,
    name="gemma3",
    model_types=("gemma3_text",),
)
