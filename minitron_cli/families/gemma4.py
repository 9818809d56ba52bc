"""Gemma 4 (text, dense): layers of full attention have heads of their own size, and keys that are values too.

Variants with embeddings per layer, shared key/value caches or experts have weights that the table does not describe.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from minitron_cli.errors import MinitronError
from minitron_cli.families.llama import ATTENTION, GATED_MLP, MODEL, NORMS, O_BIAS, POST_NORMED, QKV_BIAS
from minitron_cli.families.qwen import QK_NORM
from minitron_cli.spec.axes import CONFIG_KEYS
from minitron_cli.spec.family import family
from minitron_cli.spec.kinds import Kinds, every, listed

_LISTED = listed(
    "layer_types",
    {"sliding_attention": "sliding", "full_attention": "full"},
    lambda config, num_layers: [*every(6, "full", "sliding", num_layers - 1), "full"],
)
_SIZES = {"head_dim": "global_head_dim", "num_key_value_heads": "num_global_key_value_heads"}
_TWO_SIZES = "layers of full attention have heads of another size, in other groups, of the same number in the config"


def _last_is_full(config: Mapping[str, Any], kinds: Sequence[str]) -> dict[str, Any]:
    if kinds[-1] != "full":
        raise MinitronError(
            "the last layer that stays would not be of full attention, but transformers always builds the last one so",
            "choose other layers with --drop-layers",
        )
    return {}


def _published(config: dict[str, Any]) -> dict[str, Any]:
    """The config with the sizes of full-attention layers under their own keys, not in a table of layers."""
    rest = {key: value for key, value in config.items() if key != "per_layer_config"}
    layers = config.get("per_layer_config")
    found = list(layers.values()) if isinstance(layers, dict) else []
    if not found or any(one != found[0] or not isinstance(one, dict) or one.keys() - _SIZES for one in found):
        return config
    return {**rest, **{_SIZES[key]: value for key, value in found[0].items()}}


def _of_full_layers(lines: str) -> str:
    lines = lines.replace("(head head_dim)", "(global_head global_dim)").replace(
        "(kv head_dim)", "(global_kv global_dim)"
    )
    return "\n".join(line for line in lines.replace(" head_dim", " global_dim").splitlines() if "v_proj" not in line)


_ATTENTION = ATTENTION + QKV_BIAS + O_BIAS + QK_NORM

GEMMA4 = family(
    "gemma4",
    ["gemma4_text"],
    MODEL
    + NORMS
    + GATED_MLP
    + """
    model.layers.{layer}.pre_feedforward_layernorm.weight   hidden
    model.layers.{layer}.post_feedforward_layernorm.weight  hidden
    model.layers.{layer}.layer_scalar                       1
    [sliding]
    """
    + _ATTENTION
    + "[full]"
    + _of_full_layers(_ATTENTION),
    config_keys={
        **CONFIG_KEYS,
        "global_head": "num_attention_heads",
        "global_kv": "num_global_key_value_heads",
        "global_dim": "global_head_dim",
    },
    defaults={"tie_word_embeddings": True, "global_head_dim": 512},
    requires={
        "attention_k_eq_v": True,
        "hidden_size_per_layer_input": 0,
        "num_kv_shared_layers": 0,
        "enable_moe_block": False,
        "per_layer_config": None,
    },
    refuses={"head": _TWO_SIZES, "kv": _TWO_SIZES},
    unrotated=POST_NORMED,
    repair="sqrt_hidden",
    kinds=(Kinds(_LISTED.read, _last_is_full),),
    whole="transformers always builds the last layer as one of full attention",
    normal=_published,
)
