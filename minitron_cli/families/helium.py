"""Helium: Llama whose attention output has no bias and is (hidden, hidden): width and heads are tied."""

from minitron_cli.families.llama import ATTENTION, GATED_MLP, GATED_MLP_BIAS, MODEL, NORMS, PRE_NORMS, QKV_BIAS
from minitron_cli.spec.assumptions import absent
from minitron_cli.spec.axes import CONFIG_KEYS
from minitron_cli.spec.family import family

HELIUM = family(
    "helium",
    ["helium"],
    MODEL + NORMS + ATTENTION + QKV_BIAS + GATED_MLP + GATED_MLP_BIAS,
    config_keys={axis: key for axis, key in CONFIG_KEYS.items() if axis != "head_dim"},
    norms=PRE_NORMS,
    engines=(absent("llama.cpp"),),
)
