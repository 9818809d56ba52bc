"""Uses of tokens by way of words: text comes apart into what is spelled one by one, each distinct word once.

Two kinds of tokenizer are known to take text apart at its spaces: byte-level ones whose patterns do (`patterns`), and
those that write a space as U+2581 and split there, or whose vocabulary has no token with U+2581 after another
character, so that no merge crosses the two. Text of all other kinds is tokenised as a whole.
"""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from minitron_cli.data.encode import (
    Encoding,
    Part,
    Task,
    part_path,
    read_texts,
    room_for_parts,
    utf8_bytes,
    whole_file,
    write_marker,
    write_npy_header,
)
from minitron_cli.data.tokenizer import TextTokenizer, byte_alphabet
from minitron_cli.data.vocabulary.patterns import (
    GPT2,
    in_python,
    is_plain,
    matches_all_white_space,
    parts_before_spaces,
)

_HELD = 1 << 20  # distinct parts in memory
_BLANK = "\u2581"
# Python's \s has all white space of Unicode, and more.
_BEFORE_SPACES = re.compile(r" *[^ ]+(?:(?<=\s) +[^ ]*)*| +")
_BEFORE_RUNS, _BEFORE_EACH = (
    re.compile(f"{_BLANK}*[^{_BLANK}]+|{_BLANK}+"),
    re.compile(f"{_BLANK}[^{_BLANK}]*|[^{_BLANK}]+"),
)


@dataclass(frozen=True, slots=True, eq=False)
class Words:
    """How the text of a tokenizer comes apart.

    Its parts are the matches of `part` in what the `rewritings` make of a text. `split` takes parts of plain characters
    further apart, into words that the vocabulary spells byte by byte; without it the parts are the words.
    """

    part: re.Pattern[str]
    rewritings: tuple[Callable[[str], str], ...] = ()
    split: Callable[[str], list[str]] | None = None

    def rewrite(self, text: str) -> str:
        """A text as its parts are found in it."""
        for rewriting in self.rewritings:
            text = rewriting(text)
        return text


@lru_cache(maxsize=1)
def words_of(tokenizer: TextTokenizer) -> Words | None:
    """How text comes apart; None where that is not known."""
    raw = json.loads(tokenizer.backend.to_str())
    normal, before = _steps(raw["normalizer"], "normalizers"), _steps(raw["pre_tokenizer"], "pretokenizers")
    if raw["model"].get("dropout"):
        return None
    if any(step["type"] == "ByteLevel" for step in before):
        looked_for = any(token["normalized"] for token in raw["added_tokens"])
        known = not normal or ([step["type"] for step in normal] == ["NFC"] and not looked_for)
        return _byte_level(before) if known else None
    return _spaced(raw["model"], [*normal, *before])


def _steps(part: Mapping[str, Any] | None, inside: str) -> list[Mapping[str, Any]]:
    """The steps of a normalizer or pre-tokenizer."""
    if part is None:
        return []
    return [step for one in part[inside] for step in _steps(one, inside)] if part["type"] == "Sequence" else [part]


def _byte_level(steps: list[Mapping[str, Any]]) -> Words | None:
    patterns = [_pattern(step) for step in steps]
    stages = [pattern for pattern in patterns if pattern]
    if None in patterns or not stages:
        return None
    if not all(map(parts_before_spaces, stages)) or not matches_all_white_space(stages[-1]):
        return None
    matchers = [re.compile(f"({in_python(stage)})") for stage in stages]

    def split(text: str) -> list[str]:
        found = [text]
        for matcher in matchers:
            found = [piece for word in found for piece in matcher.split(word) if piece]
        return found

    return Words(_BEFORE_SPACES, split=split)


def _pattern(step: Mapping[str, Any]) -> str | None:
    """The pattern whose matches are pieces of their own, as is the text between them; "" of a step that splits none."""
    kind = step["type"]
    if kind == "ByteLevel" and not step["add_prefix_space"]:
        return GPT2 if step["use_regex"] else ""
    if kind == "Digits":
        return r"\p{N}" if step["individual_digits"] else r"\p{N}+"
    if kind == "Split" and step["behavior"] == "Isolated" and not step["invert"]:
        return step["pattern"].get("Regex")
    return None


def _spaced(model: Mapping[str, Any], steps: list[Mapping[str, Any]]) -> Words | None:
    rewritings: list[Callable[[str], str]] = []
    replaced = split = False
    for step in steps:
        kind = step["type"]
        if kind == "Prepend" and step["prepend"] == _BLANK:
            rewritings.append(_BLANK.__add__)
        elif kind == "Replace" and step["pattern"] == {"String": " "} and step["content"] == _BLANK:
            rewritings.append(_replaced)
            replaced = True
        elif kind == "Metaspace" and step["replacement"] == _BLANK and step is steps[-1]:
            rewritings.append(_replaced if step["prepend_scheme"] == "never" else _begun)
            replaced, split = True, step["split"]
        elif not (kind == "Split" and step["pattern"] == {"String": " "} and replaced):  # there are no spaces left
            return None
    if not replaced or not (split or _no_merge_crosses(model)):
        return None
    return Words(_BEFORE_EACH if split else _BEFORE_RUNS, tuple(rewritings))


def _replaced(text: str) -> str:
    return text.replace(" ", _BLANK)


def _begun(text: str) -> str:
    return _replaced(text) if text.startswith((" ", _BLANK)) else _BLANK + _replaced(text)


def _no_merge_crosses(model: Mapping[str, Any]) -> bool:
    """Whether BPE spells the text before U+2581, after another character, by itself: no token has the two, and none of
    the characters between two is dropped."""
    if model["type"] != "BPE" or model["ignore_merges"] or not {_BLANK, model["unk_token"]} <= model["vocab"].keys():
        return False
    crossing = re.compile(f"[^{_BLANK}]{_BLANK}")
    return not any(crossing.search(token) for token in model["vocab"])


_LETTERS = str.maketrans({chr(byte): char for char, byte in byte_alphabet().items()})


def _letters(word: str) -> str:
    """A word in the letters of a byte-level vocabulary."""
    return word.encode().decode("latin-1").translate(_LETTERS)


class Tally:
    """Uses of every id in texts: the sum of what the tokenizer makes of each as a whole."""

    def __init__(self, tokenizer: TextTokenizer, words: Words) -> None:
        self._backend, self._words = tokenizer.backend, words
        self._added = _Added(tokenizer, words)
        self._parts: Counter[str] = Counter()
        self._uses = [0] * tokenizer.vocab_size

    def add(self, text: str) -> None:
        """Count one more text."""
        rewritten = self._words.rewrite(text)
        if not self._added.may_be_in(text, rewritten):
            self._parts.update(self._words.part.findall(rewritten))
        elif self._added.apart is None:
            self._use(self._backend.encode(text, add_special_tokens=False).ids)
        else:
            pieces = self._added.apart.split(text)
            self._use([self._added.ids[token] for token in pieces[1::2]])
            for piece in pieces[::2]:
                self._parts.update(self._words.part.findall(self._words.rewrite(piece)))
        if len(self._parts) > _HELD:
            self._spell()

    def uses(self) -> np.ndarray:
        """(vocab_size,) int64."""
        self._spell()
        return np.array(self._uses, np.int64)

    def _spell(self) -> None:
        parts, self._parts = self._parts, Counter()
        if self._words.split is not None:
            others = {part: times for part, times in parts.items() if not (part.isascii() or is_plain(part))}
            encoded = self._backend.encode_batch_fast(list(others), add_special_tokens=False)
            for found, times in zip(encoded, others.values()):
                self._use(found.ids, times)
            for part in others:
                del parts[part]
            parts = Counter({_letters(w): times for w, times in _split(parts, self._words.split).items()})
        model = self._backend.model
        for word, times in parts.items():
            self._use([token.id for token in model.tokenize(word)], times)

    def _use(self, ids: Iterable[int], times: int = 1) -> None:
        for index in ids:
            self._uses[index] += times


def _split(parts: Mapping[str, int], split: Callable[[str], list[str]]) -> Counter[str]:
    """The words of parts. Those that occur equally often are joined where they came apart: before a space, after what
    is none."""
    words: Counter[str] = Counter()
    equal: dict[int, list[str]] = defaultdict(list)
    for part, times in parts.items():
        if part[0] == " " and not part[-1].isspace():
            equal[times].append(part)
        else:
            for word in split(part):
                words[word] += times
    for times, group in equal.items():
        for word, uses in Counter(split("".join(group))).items():
            words[word] += uses * times
    return words


class _Added:
    """The added tokens of a tokenizer, which it finds in a text before all else.

    `apart` splits a text at them; None where a token takes along what is around it, or is looked for in other text.
    """

    def __init__(self, tokenizer: TextTokenizer, words: Words) -> None:
        found = tokenizer.backend.get_added_tokens_decoder()
        self.ids = {token.content: index for index, token in found.items()}
        normalizer = tokenizer.backend.normalizer
        texts = {*self.ids, *(normalizer.normalize_str(text) for text in self.ids if normalizer is not None)}
        self._starts = tuple({text[:2] for text in texts if text})
        bare = not any(t.single_word or t.lstrip or t.rstrip or t.normalized for t in found.values())
        longest_first = "|".join(map(re.escape, sorted(filter(None, self.ids), key=len, reverse=True)))
        alike = set(words.rewritings) <= {_replaced}  # what comes first in a text is nothing special
        self.apart = re.compile(f"({longest_first})") if bare and alike else None

    def may_be_in(self, *texts: str) -> bool:
        """Whether one may be in a text: one that begins as one does is."""
        return any(start in text for text in texts for start in self._starts)


def count_piece(task: Task, how: Encoding, tokenizer: TextTokenizer, directory: Path) -> Part:
    """Count the tokens of one piece into `directory`, as `encode_piece` would write them."""
    words = words_of(tokenizer)
    assert words is not None, "its text comes apart"
    tallies: dict[str, Tally] = defaultdict(lambda: Tally(tokenizer, words))
    documents: Counter[str] = Counter()
    num_bytes = num_empty = 0
    with room_for_parts(directory):
        for kept, empty in read_texts(task):
            num_empty += empty
            num_bytes += sum(map(utf8_bytes, kept))
            for document in kept:
                domain = document.domain or task.domain
                documents[domain] += 1
                tallies[domain].add(document.text)
        uses = np.array([tally.uses() for tally in tallies.values()], np.int64).reshape(-1, tokenizer.vocab_size)
        for index in (*how.before, *how.after):
            uses[:, index] += list(documents.values())
        with whole_file(part_path(directory, task.index, "npy")) as stream:
            write_npy_header(stream, uses.dtype, uses.size)
            stream.write(uses.tobytes())
        part = Part(int(uses.sum()), documents.total(), num_bytes, num_empty, tuple(documents))
        write_marker(part_path(directory, task.index, "json"), part)
    return part


def read_uses(directory: Path, index: int, part: Part) -> np.ndarray:
    """What `count_piece` counted: (domains, vocab_size) int64."""
    uses: np.ndarray = np.load(part_path(directory, index, "npy"))
    return uses.reshape(len(part.domains), -1) if part.domains else uses.reshape(0, 0)
