"""DeepSeek-V2 and V3, GLM-4.7-Flash: latent attention, and experts in all layers but the first.

Keys and values of all heads are read from one latent vector (`kv_rank`) and a rotated key that the heads share
(`rope_dim`); the queries from another (`q_rank`), or directly. Heads can go, the latent vectors stay as they are.
"""

from minitron_cli.families.experts import EXPERTS, ROUTER
from minitron_cli.families.glm4_moe import DENSE_THEN_SPARSE, KEYS, SHARED_EXPERTS, SHARED_FOLLOWS
from minitron_cli.families.llama import GATED_MLP, MODEL, NORMS, O_BIAS, PRE_NORMS
from minitron_cli.spec.assumptions import Config
from minitron_cli.spec.family import Assumption, family
from minitron_cli.spec.kinds import dense_first, listed
from minitron_cli.spec.shape import Shape

_LATENT_ATTENTION = """
    model.layers.{layer}.self_attn.q_proj.weight               (head qk_dim) hidden             ?!q_lora_rank
    model.layers.{layer}.self_attn.q_a_proj.weight             q_rank hidden                    ?q_lora_rank
    model.layers.{layer}.self_attn.q_a_layernorm.weight        q_rank                           ?q_lora_rank
    model.layers.{layer}.self_attn.q_b_proj.weight             (head qk_dim) q_rank             ?q_lora_rank
    model.layers.{layer}.self_attn.kv_a_proj_with_mqa.weight   (kv_rank + rope_dim) hidden
    model.layers.{layer}.self_attn.kv_a_layernorm.weight       kv_rank
    model.layers.{layer}.self_attn.kv_b_proj.weight            (head kv_dim) kv_rank
    model.layers.{layer}.self_attn.o_proj.weight               hidden (head v_dim)
    model.layers.{layer}.self_attn.q_a_proj.bias               q_rank                           ?attention_bias
    model.layers.{layer}.self_attn.kv_a_proj_with_mqa.bias     (kv_rank + rope_dim)             ?attention_bias
"""
_KEYS = {
    **{axis: key for axis, key in KEYS.items() if axis != "head_dim"},
    "q_rank": "q_lora_rank",
    "kv_rank": "kv_lora_rank",
    "rope_dim": "qk_rope_head_dim",
    "qk_dim": "qk_nope_head_dim+qk_rope_head_dim",
    "kv_dim": "qk_nope_head_dim+v_head_dim",
    "v_dim": "v_head_dim",
}
_TOP = MODEL + NORMS + _LATENT_ATTENTION + O_BIAS


def _queries_by_depth(config: Config, shape: Shape) -> str:
    """llama.cpp knows the models whose queries have no latent vector (V2-Lite) by the number of their layers."""
    layers = shape["layer"]
    direct = layers in (26, 27) or (layers == 48 and shape["vocab"] == 128256)
    if direct == ("q_rank" not in shape):
        return ""
    return f"by its {layers} layers, it expects queries {'without' if direct else 'with'} a latent vector"


_ENGINES = (Assumption(("llama.cpp",), _queries_by_depth),)

DEEPSEEK_V3 = family(
    "deepseek_v3",
    ["deepseek_v3"],
    _TOP + DENSE_THEN_SPARSE,
    config_keys=_KEYS,
    defaults={"n_group": 8, "first_k_dense_replace": 3},
    kinds=(dense_first("first_k_dense_replace"),),
    follows=SHARED_FOLLOWS,
    engines=_ENGINES,
    predictors=("num_nextn_predict_layers", "num_mtp_layers"),
    norms=PRE_NORMS,
)

DEEPSEEK_V2 = family(
    "deepseek_v2",
    ["deepseek_v2"],
    _TOP + "[dense]" + GATED_MLP + "[sparse]" + EXPERTS + ROUTER + SHARED_EXPERTS,
    config_keys=_KEYS,
    defaults={"n_group": 1, "n_shared_experts": 2},
    kinds=(dense_first("first_k_dense_replace"),),
    follows=SHARED_FOLLOWS,
    engines=_ENGINES,
    norms=PRE_NORMS,
)

GLM4_MOE_LITE = DEEPSEEK_V3.with_(
    "",
    name="glm4_moe_lite",
    model_types=("glm4_moe_lite",),
    defaults={"n_group": 1, "n_shared_experts": 1},
    per_layer=("layer_types", "mlp_layer_types"),
    kinds=(
        listed(
            "mlp_layer_types",
            {"dense": "dense", "sparse": "sparse"},
            lambda config, num_layers: ["dense", *["sparse"] * (num_layers - 1)],
        ),
    ),
)
