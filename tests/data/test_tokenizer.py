"""Tokenizers are compared by what they do, not by their size or spelling."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from minitron_cli.data.tokenizer import (
    load_tokenizer,
    separator_ids,
    token_byte_lengths,
    tokenizer_differences,
    tokenizer_hash,
)
from minitron_cli.errors import MinitronError
from tests.data.corpora import byte_level, documents, sentencepiece_like


def edited(tokenizer_dir: Path, tmp_path: Path, edit: Callable[[dict[str, Any]], object]) -> Path:
    """A copy whose tokenizer.json went through `edit`."""
    copy = tmp_path / "edited"
    shutil.copytree(tokenizer_dir, copy)
    raw = json.loads((copy / "tokenizer.json").read_text())
    edit(raw)
    (copy / "tokenizer.json").write_text(json.dumps(raw))
    return copy


def _swap_two_words(raw: dict[str, Any]) -> None:
    vocab = raw["model"]["vocab"]
    first, second = sorted(vocab, key=vocab.__getitem__)[-2:]
    vocab[first], vocab[second] = vocab[second], vocab[first]


@pytest.mark.parametrize(
    ("edit", "part"),
    [
        (_swap_two_words, "vocabulary"),
        (lambda raw: raw["model"]["merges"].reverse(), "merges"),
        (lambda raw: raw.update(normalizer={"type": "Lowercase"}), "normalizer"),
        (lambda raw: raw["pre_tokenizer"].update(add_prefix_space=True), "pre_tokenizer"),
        (lambda raw: raw.update(post_processor=None), "post_processor"),
        (lambda raw: raw["model"].update(ignore_merges=True), "model options"),
        (lambda raw: raw["added_tokens"][0].update(lstrip=True), "added tokens"),
    ],
)
def test_same_size_but_other_tokens(
    tokenizer_dir: Path, tmp_path: Path, edit: Callable[[dict[str, Any]], object], part: str
) -> None:
    other = edited(tokenizer_dir, tmp_path, edit)
    assert load_tokenizer(other).vocab_size == load_tokenizer(tokenizer_dir).vocab_size
    assert tokenizer_hash(other) != tokenizer_hash(tokenizer_dir)
    assert tokenizer_differences(tokenizer_dir, other) == (part,)


def test_another_bos_is_another_tokenizer(tokenizer_dir: Path, tmp_path: Path) -> None:
    other = edited(tokenizer_dir, tmp_path, lambda raw: None)
    (other / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<eos>", "eos_token": "<eos>"}))
    assert tokenizer_differences(tokenizer_dir, other) == ("special ids",)


@pytest.mark.parametrize(
    "edit",
    [
        lambda raw: raw.update(
            truncation={"direction": "Right", "max_length": 5, "strategy": "LongestFirst", "stride": 0}
        ),
        lambda raw: raw.update(
            padding={
                "strategy": {"Fixed": 9},
                "direction": "Left",
                "pad_to_multiple_of": None,
                "pad_id": 0,
                "pad_type_id": 0,
                "pad_token": "<bos>",
            }
        ),
        lambda raw: raw["model"].update(merges=[" ".join(pair) for pair in raw["model"]["merges"]]),
        lambda raw: raw["model"].pop("ignore_merges"),
        lambda raw: raw["model"].update(vocab=dict(reversed(raw["model"]["vocab"].items()))),
        lambda raw: raw["added_tokens"].reverse(),
    ],
)
def test_spelling_does_not_count(tokenizer_dir: Path, tmp_path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Nor may truncation or padding, left on in the file by whoever saved it, reach the tokens."""
    other = edited(tokenizer_dir, tmp_path, edit)
    assert tokenizer_hash(other) == tokenizer_hash(tokenizer_dir)
    text = documents(30)[29]
    encode = [
        load_tokenizer(path).backend.encode(text, add_special_tokens=False).ids for path in (tokenizer_dir, other)
    ]
    assert encode[0] == encode[1]


@pytest.mark.parametrize("kind", [byte_level, sentencepiece_like])
def test_saving_by_transformers_keeps_the_identity(kind: Callable[[Path], Path], tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(kind(tmp_path / "one")).save_pretrained(tmp_path / "two")
    assert tokenizer_differences(tmp_path / "one", tmp_path / "two") == ()


def test_a_directory_without_tokenizer_json_is_converted(tmp_path: Path) -> None:
    """vocab.json and merges.txt, as GPT-2 came: the ids are those of the same tokenizer in one file."""
    one = byte_level(tmp_path / "one", adds_bos=False)
    old = tmp_path / "old"
    old.mkdir()
    load_tokenizer(one).backend.model.save(str(old))
    config = {"tokenizer_class": "GPT2Tokenizer", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<bos>"}
    (old / "tokenizer_config.json").write_text(json.dumps(config))
    (old / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    texts = documents(20)
    found = [load_tokenizer(path).backend.encode_batch(texts, add_special_tokens=False) for path in (one, old)]
    assert [row.ids for row in found[0]] == [row.ids for row in found[1]]
    assert load_tokenizer(old).eos_id == load_tokenizer(one).eos_id


@pytest.mark.parametrize(
    ("files", "bos", "eos"),
    [
        ({"tokenizer_config.json": {"bos_token": {"content": "<bos>"}, "eos_token": "<eos>"}}, 0, 1),
        ({"special_tokens_map.json": {"bos_token": "<eos>"}, "config.json": {"eos_token_id": [0, 1]}}, 1, 0),
        ({"tokenizer_config.json": {"bos_token": None, "eos_token": "<not there>"}}, None, None),
        ({"config.json": {"bos_token_id": 10**6, "eos_token_id": None}}, None, None),
    ],
)
def test_special_ids_are_found_where_they_are(
    tokenizer_dir: Path, tmp_path: Path, files: dict[str, Any], bos: int | None, eos: int | None
) -> None:
    shutil.copy(tokenizer_dir / "tokenizer.json", tmp_path)
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.bos_id, tokenizer.eos_id) == (bos, eos)


@pytest.mark.parametrize("flag", [True, False])
def test_add_bos_token_wins_over_the_post_processor(tmp_path: Path, flag: bool) -> None:
    path = byte_level(tmp_path, adds_bos=not flag)
    config = json.loads((path / "tokenizer_config.json").read_text()) | {"add_bos_token": flag}
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    assert load_tokenizer(path).adds_bos is flag


@pytest.mark.parametrize("kind", [byte_level, sentencepiece_like])
def test_byte_lengths_add_up_to_the_text(kind: Callable[[Path], Path], tmp_path: Path) -> None:
    tokenizer = load_tokenizer(kind(tmp_path))
    lengths = token_byte_lengths(tokenizer)
    surplus = 1 if kind is sentencepiece_like else 0  # the space in front
    for text in documents(50):
        ids = tokenizer.backend.encode(text, add_special_tokens=False).ids
        assert lengths[ids].sum() == len(text.encode()) + surplus
    assert lengths[tokenizer.bos_id] == lengths[tokenizer.eos_id] == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: None, "no tokenizer in"),
        (lambda p: (p / "tokenizer.json").write_text("{"), "is not JSON"),
        (lambda p: (p / "tokenizer.json").write_text('{"model": 3}'), "is not a tokenizer"),
    ],
)
def test_no_tokenizer(tmp_path: Path, make: Callable[[Path], object], message: str) -> None:
    make(tmp_path)
    with pytest.raises(MinitronError, match=message) as caught:
        load_tokenizer(tmp_path)
    assert caught.value.hint


def test_no_directory(tmp_path: Path) -> None:
    with pytest.raises(MinitronError, match="no such directory"):
        load_tokenizer(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("options", "separator", "message"),
    [
        ({}, "eos+bos", "unknown separator 'eos\\+bos'"),
        ({"eos": False, "adds_bos": False}, "auto", "has neither BOS nor EOS"),
        ({"eos": False}, "bos+eos", "has no EOS token"),
    ],
)
def test_separators_that_can_not_be(tmp_path: Path, options: dict[str, bool], separator: str, message: str) -> None:
    tokenizer = load_tokenizer(byte_level(tmp_path, **options))
    with pytest.raises(MinitronError, match=message) as caught:
        separator_ids(tokenizer, separator)
    assert caught.value.hint
