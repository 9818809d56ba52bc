"""The text model of a checkpoint of text and images: seen as a checkpoint of its own, and put back into the whole.

Everything above sees the text model's config and names. What stands beside it is met again where files are written.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from minitron_cli.checkpoint.validation import Rejected, understood
from minitron_cli.errors import MinitronError
from minitron_cli.families import known_family
from minitron_cli.spec.family import Match
from minitron_cli.spec.shape import Shape
from minitron_cli.spec.wrapper import Prefixes, Wrapper

TEXT, TIED = "text_config", "tie_word_embeddings"
_OF_THE_WHOLE = ("dtype", "torch_dtype", "quantization_config")  # stated once, for the text model too


@dataclass(frozen=True, slots=True)
class Wrapping:
    """What a checkpoint has around its text model: the tensors beside it have lines of their own, by name on disk."""

    wrapper: Wrapper
    prefixes: Prefixes
    beside: Mapping[str, Match]


def text_config(whole: Mapping[str, Any], wrapper: Wrapper, tied: bool | None = None) -> dict[str, Any]:
    """The text model's config.json dictionary, complete, of that of a model of text and images.

    What the file leaves out is what transformers fills in. The whole model decides whether the head is the embedding,
    unless `tied` says what its files show.
    """
    given = whole.get(TEXT)
    text = dict(given) if isinstance(given, dict) and _is_complete(given) else dict(_understood(whole)[TEXT])
    if plain := wrapper.text_types.get(str(text["model_type"])):
        text = dict(_understood(whole)[TEXT])
        rotation = {key: value for key, value in text["rope_parameters"].items() if not key.startswith("mrope")}
        text |= {"model_type": plain, "rope_parameters": rotation, **wrapper.text_values}
    if tied is None:
        said = whole.get(TIED)
        tied = said if type(said) is bool and said is text.get(TIED) else bool(_understood(whole).get(TIED))
    shared = {key: whole[key] for key in _OF_THE_WHOLE if key in whole and text.get(key) is None}
    return {**text, **shared, TIED: tied}


def with_text(whole: Mapping[str, Any], wrapper: Wrapper, text: Mapping[str, Any], shape: Shape) -> dict[str, Any]:
    """The config.json dictionary of the whole model around this text model, which has this shape."""
    tied = text[TIED]
    base = dict(whole) if isinstance(whole.get(TEXT), dict) else _understood(whole)
    if (own := base[TEXT].get("model_type")) in wrapper.text_types:
        known = _understood(whole)[TEXT]
        text = {key: text[key] for key in known if key in text}
        text |= {"model_type": own, "rope_parameters": known["rope_parameters"]}
    return wrapper.resized({**base, TEXT: dict(text), TIED: tied}, shape)


def _is_complete(text: Mapping[str, Any]) -> bool:
    """Whether a text config names its type and every size."""
    family = known_family(text.get("model_type"))
    if family is None:
        return "model_type" in text
    keys = (family.key(axis, text) for axis in family.config_keys)
    return all(text.get(key) is not None for key in keys if key is not None)


def _understood(whole: Mapping[str, Any]) -> dict[str, Any]:
    """The config as transformers reads it, asked once."""
    return dict(json.loads(_asked(json.dumps(dict(whole), sort_keys=True))))


@cache
def _asked(whole: str) -> str:
    try:
        found = understood(json.loads(whole))
    except Rejected as error:
        raise MinitronError(
            f"transformers rejects the config: {error}", "does config.json load with AutoConfig?"
        ) from error
    if not isinstance(found.get(TEXT), dict):
        raise MinitronError("config.json has no text_config, and transformers gives it none", "is it complete?")
    return json.dumps(found, default=str)
