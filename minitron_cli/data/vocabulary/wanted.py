"""Tokens that must stay whatever the corpus says: those that a model's files name, its chat template's, the user's."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minitron_cli.checkpoint.token_ids import ids_named
from minitron_cli.data.tokenizer import read_json
from minitron_cli.errors import MinitronError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_ROLES = ("system", "user", "assistant", "tool")
_LITERAL = re.compile(r"'((?:[^'\\]|\\.)*)'|\"((?:[^\"\\]|\\.)*)\"|\}[%}]-?([^{]+)")


def named_ids(model: Path, config: Mapping[str, Any], backend: "Tokenizer") -> set[int]:
    """Ids that the configs of a directory name, by number or by text, and the tokens of its chat templates."""
    named = ids_named(config)
    for name in ("generation_config.json", "tokenizer_config.json", "special_tokens_map.json"):
        found = read_json(model / name)
        named |= ids_named(found) | _special(found, backend)
    for text in _templates(model):
        pieces = [a or b or c for a, b, c in _LITERAL.findall(text)]
        pieces = [piece.replace("\\n", "\n").replace("\\t", "\t") for piece in pieces]
        roles = [role + after for role in _ROLES for after in ("", "\n", "\n\n")]
        named |= _ids(backend, [*pieces, *roles])
    return named


def listed_ids(file: Path, backend: "Tokenizer") -> set[int]:
    """Ids of `--keep-tokens FILE`: on each line a token as the vocabulary spells it, or text whose tokens are kept."""
    try:
        lines = [line for line in file.read_text(encoding="utf-8").split("\n") if line]
    except (OSError, UnicodeDecodeError) as error:
        raise MinitronError(
            f"--keep-tokens {file} cannot be read: {error}", "give a UTF-8 file, a token a line"
        ) from error
    known = {line: backend.token_to_id(line) for line in lines}
    spelled = {index for index in known.values() if index is not None}
    return spelled | _ids(backend, [line for line, index in known.items() if index is None])


def _ids(backend: "Tokenizer", texts: Iterable[str]) -> set[int]:
    return {i for text in texts for i in backend.encode(text, add_special_tokens=False).ids}


def _special(found: Mapping[str, Any], backend: "Tokenizer") -> set[int]:
    tokens = [value for key, value in found.items() if key.endswith("_token")]
    texts = [token.get("content") if isinstance(token, dict) else token for token in tokens]
    ids = [backend.token_to_id(text) for text in texts if isinstance(text, str)]
    return {index for index in ids if index is not None}


def _templates(model: Path) -> list[str]:
    found = read_json(model / "tokenizer_config.json").get("chat_template") or []
    named = [found] if isinstance(found, str) else [one["template"] for one in found]
    return [*named, *(file.read_text(encoding="utf-8") for file in sorted(model.rglob("*.jinja")))]
