"""GLM-4.5 and later, dots: the first layers are dense; in the others experts stand beside shared ones, as wide each.

Solar Open has no dense layers.
"""

from minitron_cli.families.experts import EXPERTS, ROUTER
from minitron_cli.families.llama import ATTENTION, GATED_MLP, MODEL, NORMS, O_BIAS, PRE_NORMS, QKV_BIAS
from minitron_cli.families.qwen import QK_NORM
from minitron_cli.spec.axes import CONFIG_KEYS
from minitron_cli.spec.family import family
from minitron_cli.spec.kinds import dense_first

SHARED_EXPERTS = """
    model.layers.{layer}.mlp.shared_experts.gate_proj.weight    shared_ffn hidden
    model.layers.{layer}.mlp.shared_experts.up_proj.weight      shared_ffn hidden
    model.layers.{layer}.mlp.shared_experts.down_proj.weight    hidden shared_ffn
"""
CHOICE_BIAS = """
    model.layers.{layer}.mlp.gate.e_score_correction_bias       expert
"""
_SPARSE = EXPERTS + ROUTER + SHARED_EXPERTS + CHOICE_BIAS
DENSE_THEN_SPARSE = "[dense]" + GATED_MLP + "[sparse]" + _SPARSE
KEYS = {
    **CONFIG_KEYS,
    "expert": "n_routed_experts",
    "expert_active": "num_experts_per_tok",
    "expert_group": "n_group",
    "expert_ffn": "moe_intermediate_size",
    "shared_ffn": "moe_intermediate_size*n_shared_experts",
}
SHARED_FOLLOWS = (("shared_ffn", "expert_ffn"),)

GLM4_MOE = family(
    "glm4_moe",
    ["glm4_moe"],
    MODEL + NORMS + ATTENTION + QKV_BIAS + QK_NORM.replace("head_dim", "head_dim ?use_qk_norm") + DENSE_THEN_SPARSE,
    config_keys=KEYS,
    defaults={"n_group": 1, "n_shared_experts": 1, "first_k_dense_replace": 1},
    kinds=(dense_first("first_k_dense_replace"),),
    follows=SHARED_FOLLOWS,
    predictors=("num_nextn_predict_layers", "num_mtp_layers"),
    norms=PRE_NORMS,
)

DOTS1 = GLM4_MOE.with_(
    QKV_BIAS + O_BIAS + QK_NORM,
    name="dots1",
    model_types=("dots1",),
    defaults={"n_group": 1},
    predictors=(),
)

SOLAR_OPEN = family(
    "solar_open",
    ["solar_open"],
    MODEL + NORMS + ATTENTION + QKV_BIAS + _SPARSE,
    config_keys={axis: key for axis, key in KEYS.items() if axis != "ffn"},
    defaults={"n_group": 1, "n_shared_experts": 1},
    follows=SHARED_FOLLOWS,
    norms=PRE_NORMS,
)
