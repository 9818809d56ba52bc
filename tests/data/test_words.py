"""Counting by words against tokenising each text as a whole, and patterns against the tokenizers library."""

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minitron_cli.data.prepare import default_cache
from minitron_cli.data.tokenizer import load_tokenizer
from minitron_cli.data.vocabulary import counts as counting
from minitron_cli.data.vocabulary.counts import count_tokens
from minitron_cli.data.vocabulary.patterns import GPT2, in_python, is_plain, parts_before_spaces
from minitron_cli.data.vocabulary.words import Tally, words_of
from tests.spellers import KINDS, byte_level, made_text, random_unicode, save, sentencepiece_bpe, unigram

_CASED = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CONTRACTED = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"\s*[\r\n]+|\s+(?!\S)|\s+"
PATTERNS = {
    "GPT-2": GPT2,
    "Llama 3": rf"{_CONTRACTED}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_REST}",
    "Qwen 2": rf"{_CONTRACTED}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_REST}",
    "GPT-4o": rf"[^\r\n\p{{L}}\p{{N}}]?{_CASED[0]}*{_CASED[1]}+{_CONTRACTED}?|"
    rf"[^\r\n\p{{L}}\p{{N}}]?{_CASED[0]}+{_CASED[1]}*{_CONTRACTED}?|\p{{N}}{{1,3}}|"
    rf" ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_REST}",
    "digits": r"\p{N}{1,3}",
    "DeepSeek": r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"
    rf" ?[\p{{P}}\p{{S}}]+[\r\n]*|{_REST}",
}
_ODD = (
    *("a!\n", " }\n", "!\n\n  ", "a.\r\n\t", "! \n"),
    *(
        " ",
        "  ",
        "a ",
        " a",
        "\n",
        "a\n b",
        "a \n b",
        "a\t b  c",
        "x = 1\n    return y\n\n",
        "it's IT'S 'll",
        "a\x1cb \x1cc",
    ),
    *("a\u2028 b", "a\xa0 b \xa0", "\u2581", "a\u2581b \u2581 c", "e\u0301 \u0301 a", "a \u212a <s\u003e", "1234567 8"),
    *("<s>", "a <s> b", "<s><s>a", "a</s", "x <unk>y <pad>  </s> z", "\u00bf\u00e9t\u00e9? \u4f60\u597d \U0001f600a b"),
)


def texts(seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    mixed = ["".join(draw.choices("ab1.'s\u00e9\u4f60\u2581\n\t  <>s/", k=40)) for _ in range(150)]
    mixed += ["".join(draw.choices("a! \n", k=draw.randint(1, 7))) for _ in range(300)]
    return [*made_text(60, seed), *(random_unicode(draw) for _ in range(80)), *mixed, *_ODD]


def _split(*patterns: str) -> Callable[[], Any]:
    def make() -> Any:
        from tokenizers import Regex, normalizers, pre_tokenizers

        backend = byte_level(made_text(300), 640)
        backend.normalizer = normalizers.NFC()
        splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
        backend.pre_tokenizer = pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(False, use_regex=False)])
        return backend

    return make


def _with(kind: Callable[..., Any], **parts: Callable[[], Any]) -> Callable[[], Any]:
    def make() -> Any:
        backend = kind(made_text(300), 640)
        for name, part in parts.items():
            setattr(backend, name, part())
        return backend

    return make


def _metaspace(scheme: str, split: bool) -> Callable[[], Any]:
    from tokenizers import pre_tokenizers

    return lambda: pre_tokenizers.Metaspace(prepend_scheme=scheme, split=split)


def _spaces() -> Any:
    from tokenizers import normalizers

    return normalizers.Replace(" ", "\u2581")


def _digits() -> Any:
    from tokenizers import pre_tokenizers

    return pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(False)])


def _kept_together() -> Any:
    from tokenizers import pre_tokenizers

    return pre_tokenizers.Split(" ", "merged_with_previous")


MADE = {
    **{name: _with(kind) for name, kind in KINDS.items()},
    **{name: _split(pattern) for name, pattern in PATTERNS.items() if name not in ("GPT-2", "digits")},
    "digits, then another": _split(PATTERNS["digits"], PATTERNS["DeepSeek"]),
    "digits one by one": _with(byte_level, pre_tokenizer=_digits),
    "no prefix": _with(sentencepiece_bpe, normalizer=_spaces, pre_tokenizer=_kept_together),
    **{
        f"U+2581 {scheme}, {split=}": _with(kind, normalizer=lambda: None, pre_tokenizer=_metaspace(scheme, split))
        for kind, split in ((sentencepiece_bpe, False), (unigram, True))
        for scheme in ("first", "always", "never")
    },
}


@pytest.mark.parametrize("name", MADE)
def test_uses_are_those_of_texts_tokenised_as_a_whole(name: str, tmp_path: Path) -> None:
    save(MADE[name](), tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    words = words_of(tokenizer)
    assert words is not None
    assert (words.split is None) == ("\u2581" in words.part.pattern)
    for group in (texts(), *([text] for text in _ODD)):
        tally = Tally(tokenizer, words)
        expected = np.zeros(tokenizer.vocab_size, np.int64)
        for text in group:
            tally.add(text)
            ids = tokenizer.backend.encode(text, add_special_tokens=False).ids
            expected += np.bincount(ids, minlength=len(expected))
        np.testing.assert_array_equal(tally.uses(), expected, str(group)[:200])


def _uses(tally: Tally, found: list[str]) -> np.ndarray:
    for text in found:
        tally.add(text)
    return tally.uses()


def test_a_pattern_that_crosses_spaces_would_be_counted_wrongly_and_is_not_counted_by_words(tmp_path: Path) -> None:
    """The negative control: words of another pattern than the tokenizer's give other uses."""
    save(_split(r"\p{L}+ \p{L}+|\s+")(), tmp_path)
    crossing = load_tokenizer(tmp_path)
    assert words_of(crossing) is None
    save(byte_level(made_text(300), 640), tmp_path)
    wrong = words_of(load_tokenizer(tmp_path))
    assert wrong is not None
    expected = np.zeros(crossing.vocab_size, np.int64)
    for text in texts():
        expected += np.bincount(crossing.backend.encode(text, add_special_tokens=False).ids, minlength=len(expected))
    assert (_uses(Tally(crossing, wrong), texts()) != expected).any()


@pytest.mark.parametrize("pattern", [
    r"\p{L}+ ?|\s+", r"\w+|\s+", r".+|\s+", r"[^x]+|\s+", r"(?<= )a|\s+", r"a\b|\s+", r"\p{Han}+|\s+", r"(a|b)+|\s+",
    r"[\p{L}&&[a-z]]+|\s+", r"a[\s]|\s+", r"\p{L}\s*[\r\n]|\s+", r"a++|\s+", r"^a|\s+", r"a(?! )|\s+",
])  # fmt: skip
def test_what_may_cross_spaces_or_is_not_understood_is_not_taken_apart(pattern: str) -> None:
    assert not parts_before_spaces(pattern)


@pytest.mark.parametrize("name", PATTERNS)
def test_patterns_find_in_python_what_the_tokenizers_library_finds(name: str) -> None:
    from tokenizers import Regex, pre_tokenizers

    pattern = PATTERNS[name]
    assert parts_before_spaces(pattern)
    library = pre_tokenizers.Split(Regex(pattern), "isolated")
    ours = re.compile(f"({in_python(pattern)})")
    plain = [char for char in map(chr, range(0x2100)) if is_plain(char)]
    assert len(plain) == 454
    draw = random.Random(3)
    drawn = ("".join(draw.choices(plain, k=4) + draw.choices("ab1 \n\t'sSLlTtre.!", k=16)) for _ in range(500))
    for text in (*(f"{c}a{c}1{c} {c}{c}\n{c}'S" for c in plain), *("".join(draw.sample(t, len(t))) for t in drawn)):
        assert [piece for piece in ours.split(text) if piece] == [p for p, _ in library.pre_tokenize_str(text)], text


@pytest.mark.parametrize("change", [
    {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}},
    {"pre_tokenizer": {"type": "Whitespace"}}, {"pre_tokenizer": None}, {"normalizer": {"type": "Lowercase"}},
])  # fmt: skip
def test_other_kinds_are_tokenised_as_a_whole(change: dict[str, Any], tmp_path: Path) -> None:
    save(byte_level(made_text(100), 640), tmp_path)
    raw = json.loads((tmp_path / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw | change))
    assert words_of(load_tokenizer(tmp_path)) is None


def test_a_token_across_a_space_is_no_boundary(tmp_path: Path) -> None:
    save(sentencepiece_bpe(made_text(100), 640), tmp_path)
    raw = json.loads((tmp_path / "tokenizer.json").read_text())
    assert words_of(load_tokenizer(tmp_path)) is not None
    raw["model"]["vocab"]["e\u2581"] = len(raw["model"]["vocab"])
    raw["model"]["merges"].append(["e", "\u2581"])
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
    assert words_of(load_tokenizer(tmp_path)) is None


def test_pieces_are_counted_once_in_any_number_of_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(byte_level(made_text(300), 640), tmp_path)
    lines = [{"text": text, "domain": f"d{i % 3}"} for i, text in enumerate(made_text(400, 4)) if i % 9] + [
        {"text": ""}
    ]
    for part in ("a", "b"):
        (tmp_path / f"{part}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    data, seen = [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")], []
    monkeypatch.setenv("MINITRON_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("minitron_cli.data.readers.PIECE_BYTES", 40_000)
    whole = _whole_counts(data, tmp_path, monkeypatch)
    for workers in (2, 1):
        found = count_tokens(data, tmp_path, 650, lambda *report: seen.append(report), workers)
        assert list(found) == list(whole)
        for domain, uses in found.items():
            np.testing.assert_array_equal(uses, whole[domain])
    parts = sorted((default_cache() / "counts").glob("*/part-*.json"))
    assert len(parts) > 2
    assert not (default_cache() / "tokens").exists()
    # Of a run that was killed the finished pieces stay, and no others are counted again.
    parts[-1].unlink()
    monkeypatch.setattr(counting, "count_piece", counted := Counted())
    count_tokens(data, tmp_path, 650)
    assert counted.indices == [int(parts[-1].stem.split("-")[1])]


class Counted:
    """`count_piece` that remembers what it was asked for."""

    def __init__(self) -> None:
        self.indices: list[int] = []

    def __call__(self, task: Any, *rest: Any) -> Any:
        from minitron_cli.data.vocabulary.words import count_piece

        self.indices.append(task.index)
        return count_piece(task, *rest)


def _whole_counts(data: list[str], model: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """What `count_tokens` makes of a tokenizer whose text does not come apart."""
    with monkeypatch.context() as patch:
        patch.setenv("MINITRON_CACHE", str(model / "other"))
        patch.setattr(counting, "words_of", lambda tokenizer: None)
        return count_tokens(data, model, 650)
