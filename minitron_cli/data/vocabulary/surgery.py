"""The tokenizer.json of a cut vocabulary: the same pipeline, fewer tokens, ids without gaps."""

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from minitron_cli.checkpoint.token_ids import renumbering, with_new_ids
from minitron_cli.data.tokenizer import merges_of
from minitron_cli.data.vocabulary.pieces import replace_ids, tokens_of
from minitron_cli.errors import MinitronError

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def cut_tokenizer(raw: Mapping[str, Any], kept: np.ndarray, rows: int) -> dict[str, Any]:
    """A tokenizer.json dictionary that knows only the ids of `kept` (ascending) of `rows`, renumbered from 0.

    A merge stays where both its parts and its product do. Raises MinitronError where `tokenizers` gives the result
    other ids.
    """
    result = copy.deepcopy({**raw, "model": {k: v for k, v in raw["model"].items() if k not in ("vocab", "merges")}})
    new_id, stays = renumbering(kept, rows), set(map(int, kept))
    old = tokens_of(raw["model"])
    left = {token: new_id(i) for token, i in sorted(old.items(), key=lambda item: item[1]) if i >= rows or i in stays}
    model = result["model"]
    if raw["model"]["type"] == "Unigram":
        model["vocab"] = [piece for i, piece in enumerate(raw["model"]["vocab"]) if i >= rows or i in stays]
        if model.get("unk_id") is not None:
            model["unk_id"] = new_id(model["unk_id"])
    else:
        model["vocab"] = left
        pairs = zip(raw["model"]["merges"], merges_of(raw["model"]))
        model["merges"] = [m for m, (a, b) in pairs if a in left and b in left and a + b in left]
    for token in result.get("added_tokens") or []:
        token["id"] = new_id(token["id"])
    replace_ids(result, new_id)
    _check_numbering(result, left)
    return result


def backend_of(raw: Mapping[str, Any]) -> "Tokenizer":
    from tokenizers import Tokenizer

    return Tokenizer.from_str(json.dumps(raw))


def _check_numbering(raw: Mapping[str, Any], left: Mapping[str, int]) -> None:
    wanted = {**left, **{token["content"]: token["id"] for token in raw.get("added_tokens") or []}}
    found = backend_of(raw).get_vocab(with_added_tokens=True)
    if wrong := [token for token in wanted if found.get(token) != wanted[token]]:
        raise MinitronError(
            f"this tokenizer numbers its added tokens in a way that a cut does not keep: {', '.join(wrong[:3])}",
            "save it again with save_pretrained, so that its ids have no gaps",
        )


def cut_files(source: Path, directory: Path, raw: Mapping[str, Any] | None, kept: np.ndarray, rows: int) -> None:
    """Rewrite, in `directory`, all that a model directory says about token ids beside its config.

    `raw` is the whole tokenizer, None where there is none. Files of other formats (SentencePiece,
    tiktoken) are left out: tokenizer.json is complete.
    """
    new_id = renumbering(kept, rows)
    _rewrite(source, directory, "generation_config.json", lambda found: with_new_ids(found, new_id))
    if raw is None:
        return
    cut = cut_tokenizer(raw, kept, rows)
    _write_json(directory / "tokenizer.json", cut, indent=None)
    for pattern in ("*.model", "*.tiktoken", "vocab.txt"):
        for file in directory.glob(pattern):
            file.unlink()
    _rewrite(source, directory, "added_tokens.json", lambda found: {t: new_id(i) for t, i in found.items()})
    _rewrite(source, directory, "tokenizer_config.json", lambda found: _tokenizer_config(found, new_id))
    _rewrite(source, directory, "vocab.json", lambda found: cut["model"]["vocab"])
    if (source / "merges.txt").is_file():
        lines = ["#version: 0.2", *(" ".join(pair) for pair in merges_of(cut["model"]))]
        (directory / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _tokenizer_config(found: dict[str, Any], new_id: Callable[[int], int]) -> dict[str, Any]:
    found = with_new_ids(found, new_id)
    if isinstance(table := found.get("added_tokens_decoder"), dict):
        found["added_tokens_decoder"] = {str(new_id(int(index))): token for index, token in table.items()}
    return found


def _rewrite(source: Path, directory: Path, name: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    if (source / name).is_file():
        found = json.loads((source / name).read_text(encoding="utf-8"))
        _write_json(directory / name, change(found), indent=2)


def _write_json(file: Path, value: Any, indent: int | None) -> None:
    file.write_text(json.dumps(value, indent=indent, ensure_ascii=False) + "\n", encoding="utf-8")
