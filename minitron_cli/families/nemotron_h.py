"""Nemotron-H and Nemotron Nano 2 and 3: every layer is one half of a block, Mamba-2, attention, an MLP or experts."""

from collections.abc import Mapping, Sequence
from typing import Any

from minitron_cli.errors import MinitronError
from minitron_cli.families.llama import ATTENTION
from minitron_cli.families.mamba2 import MAMBA2, MAMBA_WARNS
from minitron_cli.families.nemotron import PLAIN_MLP
from minitron_cli.spec.axes import CONFIG_KEYS
from minitron_cli.spec.family import family
from minitron_cli.spec.kinds import Kinds

_LETTERS = {"M": "mamba", "*": "attention", "-": "mlp", "E": "moe"}
_NAMES = {
    "linear_attention": "mamba",
    "mamba": "mamba",
    "full_attention": "attention",
    "attention": "attention",
    "mlp": "mlp",
    "moe": "moe",
}
_STATED = {"layers_block_type": _NAMES, "hybrid_override_pattern": _LETTERS}  # in the order that transformers asks


def _read(config: Mapping[str, Any], num_layers: int) -> list[str]:
    key = next((key for key in _STATED if config.get(key) is not None), "layers_block_type")
    stated = config.get(key)
    wrong = not isinstance(stated, (str, list)) or [one for one in stated if one not in _STATED[key]]
    if wrong or len(stated or ()) != num_layers:
        raise MinitronError(
            f"config.json: {key} must name one of {', '.join(_STATED[key])} for each of the {num_layers} layers, "
            f"got {stated!r}",
            "is it this model's config?",
        )
    return [_STATED[key][one] for one in stated or ()]


def _write(config: Mapping[str, Any], kinds: Sequence[str]) -> dict[str, Any]:
    """The layers that stay in each form in which the source states its own."""
    found: dict[str, Any] = {}
    for key, kind_of in _STATED.items():
        if (stated := config.get(key)) is not None:
            said = {kind_of[one]: one for one in stated}
            left = [said[kind] for kind in kinds]
            found[key] = "".join(left) if isinstance(stated, str) else left
    return found


def _counted(config: dict[str, Any]) -> dict[str, Any]:
    """The config with its number of layers, which newer ones leave to the list of them."""
    stated = next((config[key] for key in _STATED if config.get(key) is not None), None)
    counted = isinstance(stated, (str, list)) and config.get("num_hidden_layers") is None
    return {**config, "num_hidden_layers": len(stated)} if counted and stated is not None else config


_LAYERS = (
    """
    model.embeddings.weight                                      vocab hidden
    model.norm_f.weight                                          hidden
    lm_head.weight                                               vocab hidden                     ?!tie_word_embeddings
    model.layers.{layer}.norm.weight                             hidden
    [mamba]
    """
    + MAMBA2.replace("mamba_proj_bias", "use_bias").replace("mamba_conv_bias", "use_conv_bias")
    + "[attention]"
    + ATTENTION
    + "[mlp]"
    + PLAIN_MLP
    + """
    [moe]
    model.layers.{layer}.mlp.gate.weight                         expert hidden
    model.layers.{layer}.mlp.gate.e_score_correction_bias        expert
    model.layers.{layer}.mlp.shared_experts.up_proj.weight       shared_ffn hidden
    model.layers.{layer}.mlp.shared_experts.up_proj.bias         shared_ffn                       ?mlp_bias
    model.layers.{layer}.mlp.shared_experts.down_proj.weight     hidden shared_ffn
    model.layers.{layer}.mlp.shared_experts.down_proj.bias       hidden                           ?mlp_bias
"""
)
for half in ("mamba", "self_attn", "mlp"):
    _LAYERS = _LAYERS.replace(f"}}.{half}.", "}.mixer.")


def _both(line: str) -> str:
    """A line as published checkpoints name it (and transformers saves it), and as transformers holds it."""
    return f"{line.replace('model.', 'backbone.')} @disk\n{line} @memory" if "model." in line else line


NEMOTRON_H = family(
    "nemotron_h",
    ["nemotron_h"],
    "\n".join(map(_both, _LAYERS.splitlines()))
    + """
    backbone.layers.{layer}.mixer.experts.{expert}.up_proj.weight     expert_ffn hidden               @disk
    backbone.layers.{layer}.mixer.experts.{expert}.down_proj.weight   hidden expert_ffn               @disk
    # The width is written as a product, because the one that stands alone is what the experts read.
    model.layers.{layer}.mixer.experts.up_proj                        expert (1 expert_ffn) hidden    @memory
    model.layers.{layer}.mixer.experts.down_proj                      expert hidden expert_ffn        @memory
    """,
    config_keys={
        **CONFIG_KEYS,
        "mamba_head": "mamba_num_heads",
        "mamba_dim": "mamba_head_dim",
        "mamba_group": "n_groups",
        "mamba_state": "ssm_state_size",
        "conv": "conv_kernel",
        "expert": "n_routed_experts",
        "expert_active": "num_experts_per_tok",
        "expert_group": "n_group",
        "expert_ffn": "moe_intermediate_size",
        "shared_ffn": "moe_shared_expert_intermediate_size",
    },
    defaults={"head_dim": 128, "n_groups": 8, "conv_kernel": 4, "use_conv_bias": True, "n_group": 1},
    per_layer=(),
    requires={"moe_latent_size": None, "tie_word_embeddings": False},
    kinds=(Kinds(_read, _write),),
    predictors=("num_nextn_predict_layers",),
    warns=MAMBA_WARNS,
    norms={
        "backbone.layers.{layer}.norm.weight": ("backbone.layers.{layer}.mixer.",),
        "backbone.norm_f.weight": ("lm_head.",),
    },
    normal=_counted,
)
