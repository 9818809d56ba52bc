"""HyperCLOVA X: Llama with multipliers in its config, as Granite, and norms on what each half of a block adds."""

from minitron_cli.families.llama import LLAMA, POST_NORMED
from minitron_cli.spec.assumptions import absent

HYPERCLOVAX = LLAMA.with_(
    """
    model.layers.{layer}.post_norm1.weight  hidden  ?use_post_norm
    model.layers.{layer}.post_norm2.weight  hidden  ?use_post_norm
    """,
    name="hyperclovax",
    model_types=("hyperclovax",),
    defaults={"use_post_norm": True},
    engines=(absent("llama.cpp", "MLX"),),
    norms={},
    unrotated=POST_NORMED,
)
