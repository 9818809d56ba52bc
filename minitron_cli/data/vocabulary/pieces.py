"""A tokenizer.json as a graph: the tokens that each token is merged from, and those that must stay."""

import heapq
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from minitron_cli.data.tokenizer import byte_alphabet, merges_of
from minitron_cli.errors import MinitronError

NONE = -1
CUT_EXACTLY = ("BPE", "Unigram")  # the kinds of model that spell what was cut by what stays
_BYTES = tuple(f"<0x{value:02X}>" for value in range(256))
_IN_UTF8 = frozenset(range(256)) - {0xC0, 0xC1, *range(0xF5, 0x100)}  # the bytes that text in UTF-8 can have
_SPACE = "\u2581"  # SentencePiece's spelling of a space; its decoder replaces the character, not the bytes of it


@dataclass(frozen=True, slots=True, eq=False)
class Pieces:
    """The tokens of `rows` embeddings: what each is merged from, which must stay, which ids no token has.

    parents (rows, 2) are the ids of the last merge that makes a token, NONE for what is not a merge's product;
    required (rows,) and present (rows,) are bool.
    """

    parents: np.ndarray
    required: np.ndarray
    present: np.ndarray


def pieces_of(raw: Mapping[str, Any], rows: int, named: Iterable[int] = ()) -> Pieces:
    """Read the graph of a tokenizer.json dictionary; `named` are more ids that must stay.

    Raises MinitronError for a kind of tokenizer whose vocabulary cannot be cut exactly.
    """
    model = raw["model"]
    check_kind(raw)
    vocab = tokens_of(model)
    present, required = np.zeros(rows, bool), np.zeros(rows, bool)
    present[[i for i in vocab.values() if i < rows]] = True
    must = {*_spelled_by_all(model, vocab), *_unknown(model, vocab), *ids_of_parts(raw), *named}
    added = [token["id"] for token in raw.get("added_tokens") or []]
    present[[i for i in added if i < rows]] = True
    required[[i for i in (*must, *added) if 0 <= i < rows]] = True
    parents = np.full((rows, 2), NONE, np.int64)
    if model["type"] == "BPE":
        for token, pair in last_merges(merges_of(model)).items():
            parents[vocab[token]] = [vocab[part] for part in pair]
    return Pieces(parents, required, present)


def check_kind(raw: Mapping[str, Any]) -> None:
    """Refuse, in words, the tokenizers for which dropping tokens is more than dropping rows."""
    model = raw["model"]
    kind = model.get("type")
    why = None
    if kind not in CUT_EXACTLY:
        why = f"it is a {kind} tokenizer: a word that is cut would become unknown, not a longer spelling"
    elif kind == "BPE" and (model.get("continuing_subword_prefix") or model.get("end_of_word_suffix")):
        why = "its tokens carry a prefix or suffix for their place in a word"
    elif kind == "BPE" and model.get("dropout"):
        why = "it drops merges at random"
    if why:
        raise MinitronError(
            f"the vocabulary of this tokenizer cannot be cut exactly: {why}",
            "byte-level BPE, SentencePiece BPE and Unigram can be; leave --vocab out",
        )


def tokens_of(model: Mapping[str, Any]) -> dict[str, int]:
    """Token -> id of a tokenizer.json's model."""
    vocab = model["vocab"]
    return dict(vocab) if isinstance(vocab, Mapping) else {piece: i for i, (piece, _) in enumerate(vocab)}


def last_merges(merges: list[tuple[str, str]]) -> dict[str, tuple[str, str]]:
    """Token -> the pair that BPE merges last when it makes the token alone.

    Files converted from SentencePiece list every way to make a token; where there are several, BPE is run on the token.
    A token that merges never arrive at has the first pair that would make it.
    """
    ways: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for pair in merges:
        ways[pair[0] + pair[1]].append(pair)
    ranks = {pair: rank for rank, pair in enumerate(merges)} if any(len(w) > 1 for w in ways.values()) else {}
    return {token: pairs[0] if len(pairs) == 1 else _last(token, ranks) or pairs[0] for token, pairs in ways.items()}


def _last(token: str, ranks: Mapping[tuple[str, str], int]) -> tuple[str, str] | None:
    """The last pair of BPE on the characters of `token`: the lowest rank first, of equal ranks the leftmost."""
    symbols = list(token)
    after, before = list(range(1, len(token) + 1)), list(range(-1, len(token) - 1))
    queue: list[tuple[int, int, str, str]] = []

    def offer(left: int) -> None:
        right = after[left] if left >= 0 else len(symbols)
        if right < len(symbols) and (rank := ranks.get((symbols[left], symbols[right]))) is not None:
            heapq.heappush(queue, (rank, left, symbols[left], symbols[right]))

    for place in range(len(symbols)):
        offer(place)
    while queue:
        _, left, one, other = heapq.heappop(queue)
        right = after[left]
        if symbols[left] != one or right >= len(symbols) or symbols[right] != other:
            continue
        if one + other == token:
            return one, other
        symbols[left], symbols[right] = one + other, ""
        after[left] = after[right]
        if after[left] < len(symbols):
            before[after[left]] = left
        offer(before[left])
        offer(left)
    return None


def spells(raw: Mapping[str, Any]) -> str | None:
    """What text a tokenizer.json can spell, in words; None for kinds that spell words."""
    model = raw["model"]
    if model.get("type") not in CUT_EXACTLY:
        return None
    vocab = tokens_of(model)
    if _falls_back(model, vocab):
        return "spells any text, rare characters by their bytes"
    if '"ByteLevel"' in json.dumps(raw.get("pre_tokenizer")):
        lost = sorted(b for char, b in byte_alphabet().items() if char not in vocab and b in _IN_UTF8)
        return "spells any text, by its bytes" + (f"; it drops {', '.join(f'0x{b:02X}' for b in lost)}" if lost else "")
    return f"spells text of {sum(len(token) == 1 for token in vocab):,} characters; others are unknown to it"


def _falls_back(model: Mapping[str, Any], vocab: Mapping[str, int]) -> bool:
    return bool(model.get("byte_fallback")) and all(token in vocab for token in _BYTES)


def _spelled_by_all(model: Mapping[str, Any], vocab: Mapping[str, int]) -> set[int]:
    """The tokens without which some text could no longer be spelled."""
    if _falls_back(model, vocab):
        must = {vocab[token] for token in (*_BYTES, _SPACE) if token in vocab}
    else:
        single = {token for token in vocab if len(token) == 1}
        must = {vocab[token] for token in single}
        if model["type"] == "Unigram":  # a piece with a character that no single one spells
            must |= {index for token, index in vocab.items() if not single.issuperset(token)}
    if model["type"] == "Unigram":
        must.add(min(range(len(model["vocab"])), key=lambda i: model["vocab"][i][1]))
    return must


def _unknown(model: Mapping[str, Any], vocab: Mapping[str, int]) -> set[int]:
    by_name = vocab.get(model.get("unk_token") or "")
    return {index for index in (by_name, model.get("unk_id")) if index is not None}


def ids_of_parts(raw: Mapping[str, Any]) -> set[int]:
    """Ids that post-processor and padding name."""
    found: set[int] = set()

    def note(index: int) -> int:
        found.add(index)
        return index

    replace_ids(json.loads(json.dumps({key: raw.get(key) for key in ("post_processor", "padding")})), note)
    return found


def replace_ids(raw: dict[str, Any], new_id: Callable[[int], int]) -> None:
    """Replace, in place, the ids that the post-processor and the padding of a tokenizer.json name."""
    if raw.get("padding"):
        raw["padding"]["pad_id"] = new_id(raw["padding"]["pad_id"])
    if raw.get("post_processor"):
        _replace_in(raw["post_processor"], new_id)


def _replace_in(processor: dict[str, Any], new_id: Callable[[int], int]) -> None:
    for inner in processor.get("processors") or []:
        _replace_in(inner, new_id)
    special = processor.get("special_tokens")
    for token in special.values() if isinstance(special, dict) else []:
        token["ids"] = [new_id(index) for index in token["ids"]]
    for role in ("sep", "cls"):
        if isinstance(processor.get(role), list):
            processor[role] = [processor[role][0], new_id(processor[role][1])]
