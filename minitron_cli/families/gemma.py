"""Gemma multiplies its embeddings by sqrt(hidden); 2 and 3 have norms before and after both halves of a block."""

from minitron_cli.families.llama import ATTENTION, GATED_MLP, MODEL, NORMS, O_BIAS, POST_NORMED, PRE_NORMS, QKV_BIAS
from minitron_cli.families.qwen import QK_NORM
from minitron_cli.spec.assumptions import Config, one_in
from minitron_cli.spec.family import Assumption, family
from minitron_cli.spec.shape import Shape


def _scale_by_depth(layers: int) -> Assumption:
    """llama.cpp takes the model of so many layers for that of 27B, whose queries are scaled by hidden / heads."""

    def breach(config: Config, shape: Shape) -> str:
        taken = shape["hidden"] // shape["head"] if shape["layer"] == layers else shape["head_dim"]
        stated = config.get("query_pre_attn_scalar", 256)
        if stated == taken:
            return ""
        return f"from the number of layers, it divides queries by the root of {taken}, not by that of {stated:g}"

    return Assumption(("llama.cpp",), breach)


GEMMA = family(
    "gemma",
    ["gemma"],
    MODEL + NORMS + ATTENTION + QKV_BIAS + O_BIAS + GATED_MLP,
    defaults={"tie_word_embeddings": True},
    repair="sqrt_hidden",
    norms=PRE_NORMS,
    norm_offset=1.0,
)

GEMMA2 = GEMMA.with_(
    """
    model.layers.{layer}.pre_feedforward_layernorm.weight   hidden
    model.layers.{layer}.post_feedforward_layernorm.weight  hidden
    """,
    name="gemma2",
    model_types=("gemma2",),
    norms={},
    unrotated=POST_NORMED,
    engines=(one_in(2, "full_attention", "llama.cpp", "SGLang"), _scale_by_depth(46)),
)

GEMMA3 = GEMMA2.with_(
    QK_NORM,
    name="gemma3",
    model_types=("gemma3_text",),
    engines=(
        one_in(6, "full_attention", "llama.cpp"),
        one_in("sliding_window_pattern", "full_attention", "MLX", otherwise=6),
        _scale_by_depth(62),
    ),
)
