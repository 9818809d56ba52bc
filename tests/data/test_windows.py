"""Validation windows: the text that they cover to the byte, domains token by token, and the known figure."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from minitron_cli.data.prepare import token_files
from minitron_cli.data.source import parse_sources
from minitron_cli.data.tokenizer import load_tokenizer
from minitron_cli.data.tokens import TokenFile
from minitron_cli.data.windows import bits_per_byte, coverage, first_windows
from minitron_cli.errors import MinitronError
from tests.data.corpora import byte_level, documents, sentencepiece_like, write_jsonl

MakeFile = Callable[..., TokenFile]


@pytest.mark.parametrize("kind", [byte_level, sentencepiece_like])
def test_covered_bytes_are_exact_at_every_cut(kind: Callable[[Path], Path], tmp_path: Path) -> None:
    """The oracle walks the text by the offsets that the tokenizer reports, a character at a time."""
    where, texts = kind(tmp_path / "tokenizer"), documents(12)
    names = ["odd" if i % 2 else "even" for i in range(12)]
    source = write_jsonl(tmp_path / "d.jsonl", texts, domain=names)
    (file,) = token_files(parse_sources([str(source)]), where, separator="bos+eos")
    tokenizer = load_tokenizer(where)
    expected = {"even": 0, "odd": 0}
    cut = 0
    for text, name in zip(texts, names):
        before = expected[name]
        encoded = tokenizer.backend.encode(text, add_special_tokens=False)
        for position in range(len(encoded.ids) + 2):
            cut += 1
            done = encoded.ids[: min(position, len(encoded.ids))]
            expected[name] = before + _bytes_of(tokenizer.backend, done, len(encoded.ids), text)
            found = coverage(file, cut, tokenizer)
            assert found.exact
            assert dict(zip(file.header.domains, found.num_bytes.tolist())) == {k: expected[k] for k in ("even", "odd")}
            assert found.tokens.sum() == cut
    assert cut == file.header.num_tokens
    assert coverage(file, cut).num_bytes.sum() == sum(len(text.encode()) for text in texts)


def _bytes_of(backend: object, ids: list[int], whole: int, text: str) -> int:
    """Bytes of the text that the first `ids` of a document stand for, by joining the vocabulary's own strings."""
    if len(ids) == whole:
        return len(text.encode())
    spelled = "".join(backend.id_to_token(index) for index in ids)  # type: ignore[attr-defined]
    if "\u2581" not in backend.get_vocab():  # type: ignore[attr-defined]
        return len(spelled)  # byte level: a character a byte
    number = 0
    while spelled:
        if spelled.startswith("<0x"):
            number, spelled = number + 1, spelled[6:]
        else:
            number, spelled = number + len(spelled[0].replace("\u2581", " ").encode()), spelled[1:]
    return max(number - 1, 0)


def test_without_a_tokenizer_the_cut_document_counts_by_its_share(make_file: MakeFile) -> None:
    file = make_file("a", 10)
    first, size = int(file.documents["end"][0]), int(file.documents["byte_end"][0])
    found = coverage(file, first // 2)
    assert not found.exact
    assert found.num_bytes[0] == pytest.approx(size * (first // 2) / first)
    assert coverage(file, first).exact
    assert coverage(file, 0).num_bytes.tolist() == [0.0]


def test_windows_and_domains_come_in_order(tmp_path: Path, tokenizer_dir: Path) -> None:
    names = [f"d{i % 3}" for i in range(30)]
    source = write_jsonl(tmp_path / "d.jsonl", documents(30), domain=names)
    (file,) = token_files(parse_sources([str(source)]), tokenizer_dir)
    batches = list(first_windows(file, 20, limit=11, batch=4))
    assert [len(ids) for ids, _ in batches] == [4, 4, 3]
    assert np.concatenate([ids for ids, _ in batches]).ravel().tolist() == file.tokens[:220].tolist()
    sizes = np.diff(file.documents["end"].astype(int), prepend=0)
    expected = np.repeat([i % 3 for i in range(30)], sizes)[:220]
    assert np.concatenate([domains for _, domains in batches]).ravel().tolist() == expected.tolist()
    assert sum(len(ids) for ids, _ in first_windows(file, 20)) == file.num_windows(20)
    assert (np.bincount(expected, minlength=3) == coverage(file, 220).tokens).all()
    with pytest.raises(MinitronError, match="one window needs 100,000"):
        next(first_windows(file, 100_000))


def test_bits_per_byte_of_a_uniform_guess_is_eight() -> None:
    """One token a byte, each guessed among 256: 8 bits."""
    assert bits_per_byte(np.log(256), 1000, 1000) == pytest.approx(8.0)


def test_the_known_loss_of_the_real_checkpoint(shared_data: Path) -> None:
    """1.5255 nats per token on the first 128 windows of 128 tokens, BOS before each story (data/README.md)."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(shared_data / "stories260K").eval()
    sources = parse_sources([str(shared_data / "stories_eval.jsonl")])
    (file,) = token_files(sources, shared_data / "stories260K", separator="bos")
    total, count = 0.0, 0
    with torch.no_grad():
        for ids, _ in first_windows(file, 128, limit=128, batch=32):
            rows = torch.from_numpy(ids)
            losses = torch.nn.functional.cross_entropy(
                model(rows).logits[:, :-1].float().transpose(1, 2), rows[:, 1:], reduction="none"
            )
            total, count = total + losses.sum().item(), count + losses.numel()
    assert count == 128 * 127
    assert total / count == pytest.approx(1.5255, abs=5e-5)
    covered = coverage(file, 128 * 128, load_tokenizer(shared_data / "stories260K"))
    assert covered.exact
    assert 2.0 < covered.num_bytes.sum() / 128**2 < 2.05
