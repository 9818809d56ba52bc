"""Bytes of text token by token, and the known loss of the real checkpoint on its first windows."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from minitron_cli.data.prepare import token_files
from minitron_cli.data.source import parse_sources
from minitron_cli.data.text_bytes import text_bytes
from minitron_cli.data.tokenizer import load_tokenizer, token_byte_lengths
from minitron_cli.data.tokens import TokenFile
from tests.data.corpora import byte_level, documents, sentencepiece_like, write_jsonl

SEQ = 23


def windows_bytes(file: TokenFile, lengths: np.ndarray | None) -> np.ndarray:
    return text_bytes(file, np.arange(file.num_windows(SEQ)), SEQ, lengths).ravel()


def spelled_bytes(backend: Tokenizer, text: str) -> list[int]:
    """The oracle: what the tokenizer's own decoder makes longer, id by id, with the bytes it cannot show yet."""
    ids = backend.encode(text, add_special_tokens=False).ids
    spelled = [backend.id_to_token(index) for index in ids]
    if any("\u2581" in token for token in spelled):
        sizes = [1 if token.startswith("<0x") else len(token.replace("\u2581", " ").encode()) for token in spelled]
        sizes[0] -= 1  # the space in front
    else:
        sizes = [len(token) for token in spelled]
    assert sum(sizes) == len(text.encode())
    return sizes


@pytest.mark.parametrize("kind", [byte_level, sentencepiece_like])
@pytest.mark.parametrize(("separator", "before", "after"), [("bos+eos", 1, 1), ("eos", 0, 1), ("none", 0, 0)])
def test_every_token_has_its_bytes(
    kind: Callable[[Path], Path], separator: str, before: int, after: int, tmp_path: Path
) -> None:
    where, texts = kind(tmp_path / "tokenizer"), documents(40)
    source = write_jsonl(tmp_path / "d.jsonl", texts)
    (file,) = token_files(parse_sources([str(source)]), where, separator=separator)
    tokenizer = load_tokenizer(where)
    expected = [
        size for text in texts for size in [*[0] * before, *spelled_bytes(tokenizer.backend, text), *[0] * after]
    ]
    found = windows_bytes(file, token_byte_lengths(tokenizer))
    assert found.tolist() == expected[: len(found)]
    some = np.array([5, 0, 11])  # windows in any order, documents cut on both sides
    rows = text_bytes(file, some, SEQ, token_byte_lengths(tokenizer))
    assert rows.tolist() == [expected[i * SEQ : (i + 1) * SEQ] for i in some]


def test_without_a_vocabulary_a_document_is_shared_equally(tmp_path: Path, tokenizer_dir: Path) -> None:
    source = write_jsonl(tmp_path / "d.jsonl", documents(40))
    (file,) = token_files(parse_sources([str(source)]), tokenizer_dir)
    tokens = np.diff(file.documents["end"].astype(int), prepend=0)
    sizes = np.diff(file.documents["byte_end"].astype(int), prepend=0)
    found = windows_bytes(file, None)
    assert found == pytest.approx(np.repeat(sizes / tokens, tokens)[: len(found)])


def test_a_normaliser_that_changes_the_text_falls_back_to_equal_shares(tmp_path: Path) -> None:
    """Runs of blanks made one: the tokens spell fewer bytes than the document has, and still add up to all of them."""
    where = byte_level(tmp_path / "tokenizer")
    raw = json.loads((where / "tokenizer.json").read_text())
    raw["normalizer"] = {"type": "Replace", "pattern": {"Regex": " +"}, "content": " "}
    (where / "tokenizer.json").write_text(json.dumps(raw))
    texts = ["a  cat sat", "a cat sat on a mat", "the  mat"]
    (file,) = token_files(parse_sources([str(write_jsonl(tmp_path / "d.jsonl", texts))]), where, separator="none")
    found = text_bytes(file, np.array([0]), file.header.num_tokens, token_byte_lengths(load_tokenizer(where)))[0]
    ends = file.documents["end"].astype(int)
    parts = np.split(found, ends[:-1])
    assert [part.sum() for part in parts] == pytest.approx([len(text) for text in texts])
    assert len(set(parts[0])) == 1  # an equal share
    assert len(set(parts[1])) > 1  # the blanks are single: exact


def test_the_known_loss_of_the_real_checkpoint(shared_data: Path) -> None:
    """1.5255 nats per token on the first 128 windows of 128 tokens, BOS before each story (data/README.md)."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(shared_data / "stories260K").eval()
    sources = parse_sources([str(shared_data / "stories_eval.jsonl")])
    (file,) = token_files(sources, shared_data / "stories260K", separator="bos")
    rows = torch.from_numpy(file.windows(np.arange(128), 128))
    with torch.no_grad():
        logits = torch.cat([model(part).logits[:, :-1].float() for part in rows.split(32)])
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten()).item()
    assert loss == pytest.approx(1.5255, abs=5e-5)
    lengths = token_byte_lengths(load_tokenizer(shared_data / "stories260K"))
    every = np.arange(file.num_windows(128))
    exact = text_bytes(file, every, 128, lengths)
    whole = int(np.searchsorted(file.documents["end"], exact.size, side="right"))
    assert exact.sum() >= file.documents["byte_end"][whole - 1]
    assert exact.sum() == pytest.approx(text_bytes(file, every, 128).sum(), rel=1e-3)
