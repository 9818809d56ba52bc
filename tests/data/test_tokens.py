"""Token files against direct tokenisation by transformers, and what a damaged one says."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from minitron_cli.data.prepare import token_files
from minitron_cli.data.source import parse_sources
from minitron_cli.data.tokens import TokenFile, require_ids_below
from minitron_cli.errors import MinitronError
from tests.data.corpora import byte_level, documents, sentencepiece_like, word_level, write_jsonl

MakeFile = Callable[..., TokenFile]


def hf_ids(tokenizer_dir: Path, texts: list[str]) -> list[list[int]]:
    """The oracle: the ids that transformers gives, without special tokens."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


@pytest.mark.parametrize("kind", [byte_level, sentencepiece_like])
@pytest.mark.parametrize(
    ("separator", "before", "after"),
    [
        ("none", [], []),
        ("bos", ["bos"], []),
        ("eos", [], ["eos"]),
        ("bos+eos", ["bos"], ["eos"]),
    ],
)
def test_tokens_are_those_of_transformers(
    kind: Callable[[Path], Path], separator: str, before: list[str], after: list[str], tmp_path: Path
) -> None:
    where, texts = kind(tmp_path / "tokenizer"), documents(50)
    source = write_jsonl(tmp_path / "d.jsonl", texts)
    (file,) = token_files(parse_sources([str(source)]), where, separator=separator)
    special = {"bos": file.header.bos_id, "eos": file.header.eos_id}
    rows = [[*(special[b] for b in before), *ids, *(special[a] for a in after)] for ids in hf_ids(where, texts)]
    assert file.tokens.tolist() == [token for row in rows for token in row]
    assert file.documents["end"].tolist() == np.cumsum([len(row) for row in rows]).tolist()
    assert file.documents["byte_end"].tolist() == np.cumsum([len(text.encode()) for text in texts]).tolist()
    assert file.header.separator == separator
    assert file.header.num_bytes == sum(len(text.encode()) for text in texts)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"adds_bos": True}, "bos+eos"),
        ({"adds_bos": False}, "eos"),
        ({"adds_bos": True, "eos": False}, "bos"),
    ],
)
def test_auto_separator_does_as_the_tokenizer_does(options: dict[str, bool], expected: str, tmp_path: Path) -> None:
    where = byte_level(tmp_path / "tokenizer", **options)
    source = write_jsonl(tmp_path / "d.jsonl", documents(3))
    assert token_files(parse_sources([str(source)]), where)[0].header.separator == expected


@pytest.mark.parametrize(("words", "dtype"), [(65_534, "<u2"), (65_535, "<u4")])
def test_ids_take_two_bytes_while_they_fit(words: int, dtype: str, tmp_path: Path) -> None:
    where = word_level(tmp_path / "tokenizer", words)
    source = write_jsonl(tmp_path / "d.jsonl", [f"w0 w{words - 1} nothing"])
    (file,) = token_files(parse_sources([str(source)]), where)
    assert file.header.dtype == dtype
    assert file.tokens.tolist() == [2, words + 1, 0, 1]


def test_windows_are_cut_end_to_end(make_file: MakeFile) -> None:
    file = make_file("a", 30)
    flat = np.asarray(file.tokens).astype(np.int64)
    n = file.num_windows(50)
    assert n == len(flat) // 50
    assert (file.windows(np.arange(n), 50).ravel() == flat[: n * 50]).all()
    assert (file.windows(np.array([3]), 50)[0] == flat[150:200]).all()


def test_document_and_domain_numbers_follow_the_index(make_file: MakeFile) -> None:
    file = make_file("a", 30)
    expected = np.repeat(np.arange(30), np.diff(file.documents["end"].astype(int), prepend=0))
    n = file.num_windows(40)
    assert (file.document_numbers(np.arange(n), 40).ravel() == expected[: n * 40]).all()
    starts, stops = file.document_spans(np.array([0, 7, 29]))
    for document, start, stop in zip((0, 7, 29), starts, stops):
        assert (expected[start:stop] == document).all()
        assert (expected == document).sum() == stop - start


def test_ids_that_a_model_does_not_have_are_refused(make_file: MakeFile, tmp_path: Path) -> None:
    file = make_file("a", 10)
    largest = int(np.asarray(file.tokens).max())
    require_ids_below((file,), file.header.vocab_size, tmp_path)
    require_ids_below((file,), largest + 1, tmp_path)  # ids that the tokenizer knows and the text does not use
    with pytest.raises(MinitronError, match=f"holds token id {largest}, .* has {largest} embeddings"):
        require_ids_below((file,), largest, tmp_path)


def damaged(make_file: MakeFile, tmp_path: Path, damage: Callable[[Path], object]) -> Path:
    copy = tmp_path / "copy"
    shutil.copytree(make_file("a", 10).path, copy)
    damage(copy)
    return copy


def _edit(path: Path, **changes: object) -> None:
    header = json.loads((path / "header.json").read_text())
    (path / "header.json").write_text(json.dumps({k: v for k, v in (header | changes).items() if v is not None}))


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-20])


def test_a_token_file_that_is_truncated_while_it_is_read_is_an_error(make_file: MakeFile, tmp_path: Path) -> None:
    path = damaged(make_file, tmp_path, lambda p: None)
    file = TokenFile.open(path)
    (path / "tokens.bin").write_bytes(b"")
    with pytest.raises(MinitronError, match=r"tokens\.bin was truncated while it was read"):
        file.windows(np.array([0]), 8)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: (p / "header.json").unlink(), "is not a token file: it has no header.json"),
        (lambda p: (p / "header.json").write_text("{"), "is not JSON"),
        (lambda p: (p / "header.json").write_text("{}"), "is not the header of a token file"),
        (lambda p: _edit(p, version=99), "has format version 99, this minitron reads 1"),
        (lambda p: _edit(p, domains=None, colour="red"), "missing or unknown fields: colour, domains"),
        (lambda p: (p / "tokens.bin").unlink(), "tokens.bin is missing"),
        (lambda p: (p / "tokens.bin").write_bytes(b"12"), "tokens.bin has 2 bytes, its header says"),
        (lambda p: (p / "documents.npy").write_bytes(b""), "documents.npy has 0 bytes"),
        (lambda p: np.save(p / "documents.npy", np.zeros(1000)), "is not the index that its header describes"),
        (lambda p: _cut(p / "documents.npy"), "is not the index that its header describes"),
        (lambda p: (p / "documents.npy").write_bytes(b"x" * 4096), "is not the index that its header describes"),
        (lambda p: _edit(p, num_tokens="many"), "is damaged: a field has a value of another type"),
        (lambda p: _edit(p, dtype="<f9"), "is damaged: a field has a value of another type"),
        (lambda p: _edit(p, domains=5), "is damaged: a field has a value of another type"),
        (lambda p: _edit(p, sources=[1]), "is damaged: a field has a value of another type"),
    ],
)
def test_a_damaged_token_file_says_what_is_wrong(
    make_file: MakeFile, tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    path = damaged(make_file, tmp_path, damage)
    with pytest.raises(MinitronError) as caught:
        TokenFile.open(path)
    assert message in caught.value.message
    assert "again" in caught.value.hint or "make one" in caught.value.hint
