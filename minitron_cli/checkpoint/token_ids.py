"""Token ids in config files: which keys hold them, and their places after a cut of the vocabulary."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from minitron_cli.errors import MinitronError

# bos_token_id, eos_token_id (a number or a list), image_token_index, suppress_tokens, bad_words_ids, ...
_HOLDS_IDS = re.compile(r".*_token_(id|ids|index)|(begin_)?suppress_tokens|bad_words_ids")


def ids_named(config: Mapping[str, Any]) -> set[int]:
    """Every token id that a config names, at any depth; -1 and other placeholders are left out."""
    found: set[int] = set()

    def note(index: int) -> int:
        found.add(index)
        return index

    _each(config, note)
    return found


def with_new_ids(config: Mapping[str, Any], new_id: Callable[[int], int]) -> dict[str, Any]:
    """The config with every token id replaced."""
    replaced = _each(config, new_id)
    assert isinstance(replaced, dict)
    return replaced


def renumbering(kept: np.ndarray, rows: int) -> Callable[[int], int]:
    """Old id -> new id, when of `rows` embeddings those of `kept` (ascending) stay.

    Ids that have no embedding, which some multimodal tokenizers use for what is not text, come after the last. An id
    that is named and not kept is a MinitronError.
    """
    place = {int(old): new for new, old in enumerate(kept)}

    def new_id(old: int) -> int:
        if old >= rows:
            return old - rows + len(kept)
        if old not in place:
            raise MinitronError(f"token id {old} is named in a config, and is not kept", "keep what configs name")
        return place[old]

    return new_id


def _each(value: Any, change: Callable[[int], int], holds_ids: bool = False) -> Any:
    if isinstance(value, Mapping):
        return {key: _each(inner, change, bool(_HOLDS_IDS.fullmatch(key))) for key, inner in value.items()}
    if isinstance(value, list):
        return [_each(inner, change, holds_ids) for inner in value]
    return change(value) if holds_ids and type(value) is int and value >= 0 else value
