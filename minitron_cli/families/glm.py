"""GLM-4: biases on queries, keys and values, one tensor for gate and up; glm4 (0414) norms what each half adds."""

from minitron_cli.families.llama import ATTENTION, MODEL, NORMS, POST_NORMED, PRE_NORMS, QKV_BIAS
from minitron_cli.families.phi3 import GATE_UP_MLP
from minitron_cli.spec.assumptions import head_size
from minitron_cli.spec.family import family

GLM = family(
    "glm",
    ["glm"],
    MODEL + NORMS + ATTENTION + QKV_BIAS + GATE_UP_MLP,
    defaults={"attention_bias": True},
    norms=PRE_NORMS,
    engines=(head_size("llama.cpp"),),
)

GLM4 = GLM.with_(
    """
    model.layers.{layer}.post_self_attn_layernorm.weight  hidden
    model.layers.{layer}.post_mlp_layernorm.weight        hidden
    """,
    name="glm4",
    model_types=("glm4",),
    engines=(),
    norms={},
    unrotated=POST_NORMED,
)
