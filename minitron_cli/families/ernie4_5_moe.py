"""ERNIE 4.5 with experts: dense layers before (and perhaps after) the sparse ones."""

from collections.abc import Mapping, Sequence
from typing import Any

from minitron_cli.errors import MinitronError
from minitron_cli.families.experts import EXPERTS, ROUTER
from minitron_cli.families.glm4_moe import SHARED_EXPERTS, SHARED_FOLLOWS
from minitron_cli.families.llama import ATTENTION, GATED_MLP, MODEL, NORMS, PRE_NORMS
from minitron_cli.spec.axes import CONFIG_KEYS
from minitron_cli.spec.family import family
from minitron_cli.spec.kinds import Kinds


def _read(config: Mapping[str, Any], num_layers: int) -> list[str]:
    first, last, interval = (
        config.get(f"moe_layer_{name}", default)
        for name, default in (("start_index", 1), ("end_index", -1), ("interval", 1))
    )
    last = num_layers - 1 if last == -1 else last
    sparse = [first <= layer <= last and (layer + 1) % interval == 0 for layer in range(num_layers)]
    return ["sparse" if one else "dense" for one in sparse]


def _write(config: Mapping[str, Any], kinds: Sequence[str]) -> dict[str, Any]:
    if "sparse" not in kinds:
        return {"moe_layer_start_index": len(kinds), "moe_layer_end_index": len(kinds), "moe_layer_interval": 1}
    first = list(kinds).index("sparse")
    last = first + list(kinds).count("sparse") - 1
    if "dense" in kinds[first : last + 1]:
        raise MinitronError(
            "dense layers would lie between sparse ones, which no ERNIE 4.5 config can state",
            "choose other layers with --drop-layers",
        )
    return {"moe_layer_start_index": first, "moe_layer_end_index": last, "moe_layer_interval": 1}


ERNIE4_5_MOE = family(
    "ernie4_5_moe",
    ["ernie4_5_moe"],
    MODEL
    + NORMS
    + ATTENTION
    + "[dense]"
    + GATED_MLP
    + "[sparse]"
    + EXPERTS
    + ROUTER
    + SHARED_EXPERTS.replace("hidden shared_ffn", "hidden shared_ffn ?moe_num_shared_experts").replace(
        "shared_ffn hidden", "shared_ffn hidden ?moe_num_shared_experts"
    )
    + """
    model.layers.{layer}.mlp.moe_statics.e_score_correction_bias        1 expert     @split
    model.layers.{layer}.mlp.gate.moe_statics.e_score_correction_bias   1 expert     @fused
    """,
    config_keys={
        **CONFIG_KEYS,
        "expert": "moe_num_experts",
        "expert_active": "moe_k",
        "expert_ffn": "moe_intermediate_size",
        "shared_ffn": "moe_intermediate_size*moe_num_shared_experts",
    },
    defaults={"tie_word_embeddings": True, "moe_num_shared_experts": 2},
    requires={"use_bias": False},
    kinds=(Kinds(_read, _write),),
    follows=SHARED_FOLLOWS,
    norms=PRE_NORMS,
)
