"""What families with Mamba-2 layers share (arXiv 2405.21060): one input matrix, a convolution, a gated norm.

Rows of the input matrix are [gate, x, B, C, dt]: gate and x have the channels of all heads, B and C a state for each
group of heads, dt a number for each head. The convolution runs over x, B and C.
Of each group the same number of heads stays, and of each head the channels at the same positions (Minitron-SSM, arXiv
2504.11409); groups and states stay as they are.
"""

from collections.abc import Mapping
from typing import Any

_X = "mamba_head mamba_dim"
_BC = "2 mamba_group mamba_state"
MAMBA2 = f"""
    model.layers.{{layer}}.mamba.in_proj.weight          ({_X} + {_X} + {_BC} + mamba_head) hidden
    model.layers.{{layer}}.mamba.in_proj.bias            ({_X} + {_X} + {_BC} + mamba_head)   ?mamba_proj_bias
    model.layers.{{layer}}.mamba.conv1d.weight           ({_X} + {_BC}) 1 conv
    model.layers.{{layer}}.mamba.conv1d.bias             ({_X} + {_BC})                       ?mamba_conv_bias
    model.layers.{{layer}}.mamba.dt_bias                 mamba_head
    model.layers.{{layer}}.mamba.A_log                   mamba_head
    model.layers.{{layer}}.mamba.D                       mamba_head
    model.layers.{{layer}}.mamba.norm.weight             ({_X})
    model.layers.{{layer}}.mamba.out_proj.weight         hidden ({_X})
    model.layers.{{layer}}.mamba.out_proj.bias           hidden                               ?mamba_proj_bias
"""
MAMBA_WARNS = dict.fromkeys(
    ("mamba_head", "mamba_dim"),
    "a norm spans all channels of a group of heads, so that those which stay are scaled otherwise; distillation has to "
    "make up for it",
)
MAMBA_KEYS = {
    "mamba_head": "mamba_n_heads",
    "mamba_dim": "mamba_d_head",
    "mamba_group": "mamba_n_groups",
    "mamba_state": "mamba_d_state",
    "conv": "mamba_d_conv",
}
MAMBA_DEFAULTS = {"mamba_conv_bias": True, "mamba_n_groups": 1, "mamba_d_conv": 4}
EXPAND = {"mamba_expand": "mamba_head*mamba_dim/hidden"}


def own_channels(config: dict[str, Any]) -> dict[str, Any]:
    """The config with the channels of a head as a number, where it leaves them to be computed ("auto")."""
    if config.get("mamba_d_head", "auto") != "auto":
        return config
    inner = _inner(config)
    heads = config.get("mamba_n_heads", 128)
    whole = inner is not None and type(heads) is int and heads > 0 and inner % heads == 0
    return {**config, "mamba_d_head": inner // heads} if whole and inner is not None else config


def _inner(config: Mapping[str, Any]) -> int | None:
    """The channels of all heads of a layer."""
    if config.get("mamba_d_ssm") is not None:
        return config["mamba_d_ssm"] if type(config["mamba_d_ssm"]) is int else None
    expand, hidden = config.get("mamba_expand", 2), config.get("hidden_size")
    return expand * hidden if type(expand) is int and type(hidden) is int else None
