"""How long an input may be: from the config alone, without torch; and how many go together."""

from collections.abc import Mapping
from typing import Any

from minitron_cli.errors import MinitronError

CALIBRATION_LENGTH = 4096  # tokens a sample, NVIDIA's released code; shorter where the model's context is
# Of a forward pass, where nothing else is asked: they keep a GPU busy, and stay in a CPU's caches.
BATCH_TOKENS = {"cuda": 16384, "cpu": 4096}
_KEYS = ("max_position_embeddings", "n_positions")


def context_length(config: Mapping[str, Any]) -> int | None:
    """Positions that a config.json dictionary allows, or None where it states no limit."""
    for key in _KEYS:
        value = config.get(key)
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise MinitronError(f"config.json: {key} is {value!r}, not a number of positions", "repair the config")
        return value
    return None


def sequence_length(asked: int | None, usual: int, contexts: Mapping[str, int | None], flag: str = "--seq-len") -> int:
    """Tokens per sequence: `asked`, or the shortest context among the models, at most `usual`.

    `contexts` maps the name of each model to its context. A length that a model cannot take is a MinitronError.
    """
    limits = {name: limit for name, limit in contexts.items() if limit is not None}
    if asked is None:
        return min([usual, *limits.values()])
    for name, limit in limits.items():
        if asked > limit:
            raise MinitronError(
                f"{flag} {asked} is longer than the context of {name} ({limit} positions)",
                f"use {flag} {min(limits.values())} or shorter",
            )
    return asked


def batch_size(asked: int | None, seq_len: int, device: str) -> int:
    """Samples per batch of a forward pass: as many as make a few thousand tokens, unless asked otherwise."""
    return asked or max(1, BATCH_TOKENS[device] // seq_len)
