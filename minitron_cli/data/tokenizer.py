"""The tokenizer of a model directory, without transformers where its `tokenizer.json` is there.

Two tokenizers of one vocabulary size are not one tokenizer. `tokenizer_hash` compares what decides the ids of a text:
vocabulary, merges, normaliser, pre-tokeniser, post-processor, added tokens, special ids. How a file spells it does not
count: truncation and padding left on by the last user, merges as strings or pairs, defaults written out or not.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from minitron_cli.errors import MinitronError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_LONE_BYTE = re.compile("<0x([0-9A-F]{2})>")
SEPARATORS = ("auto", "bos", "eos", "bos+eos", "none")
# What a BPE, Unigram or WordPiece model means where its file leaves a key out.
_MODEL_DEFAULTS: dict[str, Any] = {
    "dropout": None,
    "unk_token": None,
    "continuing_subword_prefix": None,
    "end_of_word_suffix": None,
    "fuse_unk": False,
    "byte_fallback": False,
    "ignore_merges": False,
}


@dataclass(frozen=True, slots=True, eq=False)
class TextTokenizer:
    """A `tokenizers.Tokenizer` with truncation and padding off, and the ids that separate documents."""

    path: Path
    backend: "Tokenizer"
    vocab_size: int  # largest id + 1, added tokens included
    bos_id: int | None
    eos_id: int | None
    adds_bos: bool  # whether the tokenizer itself puts BOS before a text
    hash: str


def has_tokenizer(model: Path) -> bool:
    """Whether a directory holds a tokenizer of any format."""
    return any((model / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model"))


def load_tokenizer(path: Path) -> TextTokenizer:
    """The tokenizer of directory `path`; `tokenizer.json` is read directly, other formats through transformers."""
    path = Path(path)
    backend = _load_backend(path)
    backend.no_truncation()
    backend.no_padding()
    config = read_json(path / "tokenizer_config.json")
    special = {role: _special_id(role, backend, config, path) for role in ("bos", "eos")}
    vocab = backend.get_vocab(with_added_tokens=True)
    if not vocab:
        raise MinitronError(f"the tokenizer of {path} has no vocabulary", "save it again with save_pretrained")
    return TextTokenizer(
        path=path,
        backend=backend,
        vocab_size=max(vocab.values()) + 1,
        bos_id=special["bos"],
        eos_id=special["eos"],
        adds_bos=_adds_bos(backend, config, special["bos"]),
        hash=_digest(_parts(tokenizer_json(path, backend), special)),
    )


def tokenizer_hash(path: Path) -> str:
    """Identity of the tokenizer in directory `path`: equal hashes give equal ids for every text (hex sha256)."""
    return load_tokenizer(path).hash


def tokenizer_differences(one: Path, other: Path) -> tuple[str, ...]:
    """Names of the parts in which two tokenizers differ (`vocabulary`, `merges`, ...); empty when they are equal."""
    parts = []
    for tokenizer in (load_tokenizer(Path(one)), load_tokenizer(Path(other))):
        special = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id}
        parts.append(_parts(tokenizer_json(tokenizer.path, tokenizer.backend), special))
    return tuple(name for name in parts[0] if parts[0][name] != parts[1][name])


def tokenizer_json(path: Path, backend: "Tokenizer | None" = None) -> dict[str, Any]:
    """The tokenizer of a directory as a tokenizer.json dictionary; other formats are converted (`backend` is that)."""
    return read_json(path / "tokenizer.json") or json.loads((backend or load_tokenizer(path).backend).to_str())


def merges_of(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The merges of a tokenizer.json's model in rank order; older files write a pair as one string."""
    pairs = (merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model.get("merges") or [])
    return [(one, other) for one, other in pairs]


def separator_ids(tokenizer: TextTokenizer, separator: str) -> tuple[str, list[int], list[int]]:
    """Resolve `separator`: its plain name, and the ids before and after each document.

    `auto` = BOS in front if the tokenizer itself adds one, EOS after it if there is one.
    """
    if separator not in SEPARATORS:
        raise MinitronError(f"unknown separator {separator!r}", f"one of: {', '.join(SEPARATORS)}")
    if separator == "auto":
        chosen = [tokenizer.adds_bos and "bos", tokenizer.eos_id is not None and "eos"]
        separator = "+".join(name for name in chosen if name)
        if not separator:
            raise MinitronError(
                f"the tokenizer of {tokenizer.path} has neither BOS nor EOS to put between documents",
                "say --separator none to join documents without a mark",
            )
    wanted = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id}
    missing = [name for name in separator.split("+") if name != "none" and wanted[name] is None]
    if missing:
        absent = " and no ".join(missing).upper()
        raise MinitronError(
            f"--separator {separator}: the tokenizer of {tokenizer.path} has no {absent} token",
            "choose another --separator, or name the token in tokenizer_config.json",
        )
    names = separator.split("+")
    before = [tokenizer.bos_id] if "bos" in names and tokenizer.bos_id is not None else []
    after = [tokenizer.eos_id] if "eos" in names and tokenizer.eos_id is not None else []
    return separator, before, after


def token_byte_lengths(tokenizer: TextTokenizer) -> np.ndarray:
    """Bytes of text that each id stands for: (vocab_size,) int64. Special tokens stand for no text."""
    lengths = np.array([len(token) for token in token_bytes(tokenizer)], np.int64)
    added = tokenizer.backend.get_added_tokens_decoder()
    lengths[[index for index, token in added.items() if token.special]] = 0
    return lengths


def token_bytes(tokenizer: TextTokenizer) -> list[bytes]:
    """What each id spells, `vocab_size` byte strings, where the vocabulary says so plainly; nothing where it has none.

    Byte-level vocabularies spell one byte per character; SentencePiece ones write a space as U+2581 and a lone byte as
    `<0xNN>`. Added tokens, special ones too, spell their text.
    """
    raw = tokenizer_json(tokenizer.path, tokenizer.backend)
    byte_level = any('"ByteLevel"' in json.dumps(raw.get(part)) for part in ("pre_tokenizer", "decoder"))
    alphabet = byte_alphabet()
    found = [b""] * tokenizer.vocab_size
    added = tokenizer.backend.get_added_tokens_decoder()
    for token, index in tokenizer.backend.get_vocab(with_added_tokens=True).items():
        if index in added:
            found[index] = token.encode()
        elif byte_level:
            found[index] = bytes(alphabet.get(char, 0) for char in token)
        elif lone := _LONE_BYTE.fullmatch(token):
            found[index] = bytes.fromhex(lone[1])
        else:
            found[index] = token.replace("\u2581", " ").encode()
    return found


def byte_alphabet() -> dict[str, int]:
    """The character that stands for each byte in byte-level vocabularies (GPT-2's): itself, where Latin-1 prints it."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = sorted(set(range(256)).difference(plain))
    return {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(others)}


def _load_backend(path: Path) -> "Tokenizer":
    file = path / "tokenizer.json"
    if not file.is_file():
        return _load_through_transformers(path)
    from tokenizers import Tokenizer

    model = read_json(file).get("model")
    if not isinstance(model, dict) or "vocab" not in model:
        raise MinitronError(f"{file} is not a tokenizer: it has no model with a vocab", "copy it again from its model")
    return Tokenizer.from_file(str(file))


def _load_through_transformers(path: Path) -> "Tokenizer":
    """SentencePiece and vocab.json + merges.txt directories, converted by transformers; hub names too."""
    name = str(path)
    if not path.is_dir() and (path.is_absolute() or name.startswith(".") or name.count("/") > 1):
        raise MinitronError(f"no such directory: {path}", "give the directory of a model that has a tokenizer")
    from transformers import AutoTokenizer

    try:
        loaded = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise MinitronError(
            f"no tokenizer in {path}",
            "give a model directory that has tokenizer.json (or one that transformers can load)",
        ) from error
    backend = getattr(loaded, "backend_tokenizer", None)
    if backend is None:
        raise MinitronError(
            f"the tokenizer of {path} ({type(loaded).__name__}) has no fast form",
            "convert it to a tokenizer.json first",
        )
    return backend


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object in a file of a model directory; empty where there is none."""
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise MinitronError(f"{file} is not JSON: {error}", "copy it again from its model") from error
    return found if isinstance(found, dict) else {}


def _special_id(role: str, backend: "Tokenizer", config: dict[str, Any], path: Path) -> int | None:
    """Id of the BOS or EOS token: by its text in the tokenizer's files, else by its number in the model's config."""
    for found in (config, read_json(path / "special_tokens_map.json")):
        token = found.get(f"{role}_token")
        text = token.get("content") if isinstance(token, dict) else token
        if isinstance(text, str) and backend.token_to_id(text) is not None:
            return backend.token_to_id(text)
    number = read_json(path / "config.json").get(f"{role}_token_id")
    if isinstance(number, list):
        number = number[0] if number else None
    return number if isinstance(number, int) and backend.id_to_token(number) is not None else None


def _adds_bos(backend: "Tokenizer", config: dict[str, Any], bos_id: int | None) -> bool:
    """As transformers decides: an explicit `add_bos_token` wins over the post-processor of tokenizer.json."""
    if bos_id is None:
        return False
    if isinstance(config.get("add_bos_token"), bool):
        return config["add_bos_token"]
    return backend.encode("a", add_special_tokens=True).ids[:1] == [bos_id]


def _parts(raw: dict[str, Any], special: dict[str, int | None]) -> dict[str, str]:
    """Digest of each part that decides the ids of a text, spelling normalised."""
    added = sorted(raw.get("added_tokens") or [], key=lambda token: token["id"])
    parts = {
        "vocabulary": raw["model"].get("vocab"),
        "merges": merges_of(raw["model"]),
        "model options": model_options(raw["model"]),
        "added tokens": added,
        "normalizer": raw.get("normalizer"),
        "pre_tokenizer": raw.get("pre_tokenizer"),
        "post_processor": _what_is_added(raw.get("post_processor")),
        "special ids": special,
    }
    return {name: _digest(part) for name, part in parts.items()}


def model_options(model: Mapping[str, Any]) -> dict[str, Any]:
    """What a tokenizer.json's model says beside vocabulary and merges, defaults written out."""
    options = {k: v for k, v in {**_MODEL_DEFAULTS, **model}.items() if k not in ("vocab", "merges")}
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        options[key] = options[key] or None
    return options


def _what_is_added(processor: dict[str, Any] | None) -> list[dict[str, Any]]:
    """A post-processor reduced to what it puts around one text: nothing, where it only moves offsets or is a template
    of the text alone, which transformers saves where there was none."""
    if processor is None or processor["type"] == "ByteLevel":
        return []
    if processor["type"] == "Sequence":
        return [step for part in processor["processors"] for step in _what_is_added(part)]
    if processor["type"] != "TemplateProcessing":
        return [processor]
    if not any("SpecialToken" in piece for piece in processor["single"]):
        return []
    return [{"single": processor["single"], "special_tokens": processor["special_tokens"]}]


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
