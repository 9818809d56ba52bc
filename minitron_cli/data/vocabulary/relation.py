"""Whether one tokenizer is a cut of another, and which of its tokens are which."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from minitron_cli.data.tokenizer import TextTokenizer, load_tokenizer, merges_of, model_options, tokenizer_json
from minitron_cli.data.vocabulary.pieces import CUT_EXACTLY


def image_of(cut: Path, whole: Path) -> tuple[np.ndarray, list[str]]:
    """The id in `whole` of every token of `cut`, (tokens of cut,) int64, and in what the one is not a cut of the other.

    It is one where its tokens, merges, scores, added and special tokens are some of the other's, in the same order of
    merging, and all else that decides the tokens of a text is equal. The numbering is free. -1 is of no token. Where
    words that are cut become unknown, which `check_kind` refuses to cut, none is a cut of another.
    """
    tokenizers = load_tokenizer(cut), load_tokenizer(whole)
    raws = tokenizer_json(cut), tokenizer_json(whole)
    mine, theirs = (one.backend.get_vocab(with_added_tokens=True) for one in tokenizers)
    image = np.full(tokenizers[0].vocab_size, -1, np.int64)
    for token, index in mine.items():
        image[index] = theirs.get(token, -1)
    differing = {
        "kind": raws[0]["model"].get("type") not in CUT_EXACTLY,
        "vocabulary": bool((image < 0).any()) or not _scores(raws[0]).items() <= _scores(raws[1]).items(),
        "merges": not _is_cut(raws[0]["model"], raws[1]["model"]),
        "added tokens": not _added(raws[0]).items() <= _added(raws[1]).items(),
        "model options": _options(raws[0]["model"]) != _options(raws[1]["model"]),
        "special ids": _special(tokenizers[0]) != _special(tokenizers[1]),
    }
    differing |= {part: raws[0].get(part) != raws[1].get(part) for part in ("normalizer", "pre_tokenizer")}
    return image, [part for part, differs in differing.items() if differs]


def _is_cut(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool:
    """Whether the merges of one model are some of the other's, in the same order."""
    kept = merges_of(mine)
    stays = set(kept)
    return kept == [pair for pair in merges_of(theirs) if pair in stays]


def _scores(raw: Mapping[str, Any]) -> dict[str, float]:
    """Piece -> score of a Unigram model; other kinds have none."""
    return dict(raw["model"]["vocab"]) if raw["model"].get("type") == "Unigram" else {}


def _added(raw: Mapping[str, Any]) -> dict[str, list[tuple[str, Any]]]:
    """Text of an added token -> all that its file says of it but its id."""
    return {
        token["content"]: sorted((key, value) for key, value in token.items() if key != "id")
        for token in raw.get("added_tokens") or []
    }


def _options(model: Mapping[str, Any]) -> dict[str, Any]:
    options = model_options(model)
    unknown = options.pop("unk_id", None)
    return options | ({} if unknown is None else {"unknown": model["vocab"][unknown][0]})


def _special(tokenizer: TextTokenizer) -> list[str | None]:
    return [None if i is None else tokenizer.backend.id_to_token(i) for i in (tokenizer.bos_id, tokenizer.eos_id)]
