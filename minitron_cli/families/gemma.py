"""Gemma multiplies its embeddings by sqrt(hidden); 2 and 3 have norms before and after both halves of a block."""

from minitron_cli.families.llama import ATTENTION, GATED_MLP, MODEL, NORMS, O_BIAS, PRE_NORMS, QKV_BIAS
from minitron_cli.families.qwen import QK_NORM
from minitron_cli.spec.family import family

GEMMA = family(
    "gemma",
    ["gemma"],
    MODEL + NORMS + ATTENTION + QKV_BIAS + O_BIAS + GATED_MLP,
    defaults={"tie_word_embeddings": True},
    repair="sqrt_hidden",
    rms_norms=PRE_NORMS,
    norm_offset=1.0,
)

GEMMA2 = GEMMA.with_(
    """
    model.layers.{layer}.pre_feedforward_layernorm.weight   hidden
    model.layers.{layer}.post_feedforward_layernorm.weight  hidden
    """,
    name="gemma2",
    model_types=("gemma2",),
    rms_norms={},  # the norms after a block's halves see single channels
)

GEMMA3 = GEMMA2.with_(QK_NORM, name="gemma3", model_types=("gemma3_text",))
