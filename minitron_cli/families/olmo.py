"""OLMo 2 and 3 (norms after each half of a block) and OLMoE (experts): both norm queries and keys across all heads."""

from minitron_cli.families.experts import EXPERT_KEYS, EXPERTS, ROUTER
from minitron_cli.families.llama import ATTENTION, GATED_MLP, MODEL, NORMS, O_BIAS, POST_NORMED, PRE_NORMS, QKV_BIAS
from minitron_cli.spec.assumptions import head_size
from minitron_cli.spec.family import family

_WARNS = dict.fromkeys(
    ("head", "kv"),
    "one norm spans the queries (and one the keys) of all heads, so that those which stay are scaled otherwise; "
    "distillation has to make up for it",
)
_ATTENTION = (
    ATTENTION
    + QKV_BIAS
    + O_BIAS
    + """
    model.layers.{layer}.self_attn.q_norm.weight           (head head_dim)
    model.layers.{layer}.self_attn.k_norm.weight           (kv head_dim)
    """
)
POST_NORMS = """
    model.layers.{layer}.post_attention_layernorm.weight   hidden
    model.layers.{layer}.post_feedforward_layernorm.weight hidden
"""

OLMO2 = family(
    "olmo2",
    ["olmo2", "olmo3"],
    MODEL + _ATTENTION + GATED_MLP + POST_NORMS,
    unrotated=POST_NORMED,
    warns=_WARNS,
    engines=(head_size("llama.cpp"), head_size("SGLang", types=("olmo2",))),
)

OLMOE = family(
    "olmoe",
    ["olmoe"],
    MODEL + NORMS + _ATTENTION + EXPERTS + ROUTER,
    # The width of the q norm is hidden_size in transformers, which ties width and heads together.
    config_keys={axis: key for axis, key in EXPERT_KEYS.items() if axis != "head_dim"}
    | {"expert_ffn": "intermediate_size"},
    norms=PRE_NORMS,
    warns=_WARNS,
    defaults={"norm_topk_prob": False},
)
