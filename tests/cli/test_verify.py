"""`minitron verify` on what is not a model: token directories, results, scores and run directories."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from minitron_cli.chain.fingerprint import combine, file_digests
from minitron_cli.chain.state import Record, save
from minitron_cli.checkpoint.reader import open_checkpoint
from minitron_cli.checkpoint.scores_file import write_scores
from minitron_cli.evaluate.request import write_results
from tests.cli.conftest import Result
from tests.prune.cutting import prune_to, random_scores
from tests.training.runs import write_text

Toy = Callable[..., Path]
Minitron = Callable[..., Result]


def flip(file: Path, at: int) -> None:
    raw = bytearray(file.read_bytes())
    raw[at] ^= 1
    file.write_bytes(raw)


def tokens(toy: Toy, place: Path, minitron: Minitron) -> tuple[Path, Path]:
    text = write_text(place / "text.jsonl")
    assert minitron("data", "tokenize", text, "--tokenizer", toy("llama"), "-o", place / "tokens").code == 0
    return place / "tokens", place / "tokens" / "tokens.bin"


def results(toy: Toy, place: Path, minitron: Minitron) -> tuple[Path, Path]:
    write_results({"rows": [1.25, float("nan")], "versions": {}}, place / "results.json", lambda text: None)
    return place / "results.json", place / "results.json"


def references(toy: Toy, place: Path, minitron: Minitron) -> tuple[Path, Path]:
    file, text = place / "references.json", write_text(place / "text.jsonl")
    line = ["reference-loss", "--source", toy("llama"), "--eval-data", text, "--seq-len", 32, "-o", file]
    assert minitron(*line).code == 0
    return file, file


def scores(toy: Toy, place: Path, minitron: Minitron) -> tuple[Path, Path]:
    write_scores(place / "s.safetensors", random_scores(open_checkpoint(toy("llama")).shape))
    return place / "s.safetensors", place / "s.safetensors"


def chain(toy: Toy, place: Path, minitron: Minitron) -> tuple[Path, Path]:
    prune_to(toy("llama"), place / "run" / "cut", {"ffn": 56})
    files = file_digests(place / "run" / "cut")
    record = Record(digest=combine(place / "run" / "cut", files), files=files, command=["prune"])
    save(place / "run", {"cut": record, "next": Record(command=["distill"])})
    return place / "run", place / "run" / "cut" / "config.json"


@pytest.mark.parametrize("make", [tokens, results, references, scores, chain])
def test_whole_and_with_one_bit_changed(make: Callable, toy: Toy, tmp_path: Path, minitron: Minitron) -> None:
    artefact, file = make(toy, tmp_path, minitron)
    whole = minitron("verify", artefact, "--json")
    assert (whole.code, json.loads(whole.out)["problems"]) == (0, [])
    flip(file, -40 if make in (results, references) else -1)
    changed = minitron("verify", artefact)
    assert changed.code == 1
    assert "does not verify" in changed.err
    assert "hint: " in changed.err


@pytest.mark.parametrize("options", ["--run", "--source x", "--moments x"])
def test_what_only_models_can_be_asked(options: str, toy: Toy, tmp_path: Path, minitron: Minitron) -> None:
    file, _ = scores(toy, tmp_path, minitron)
    refused = minitron("verify", file, *options.split())
    assert refused.code == 1
    assert "is not a model" in refused.err


def test_what_is_no_artefact(tmp_path: Path, minitron: Minitron) -> None:
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "deep.json").write_text("[" * 200_000)
    (tmp_path / "text.txt").write_text("no artefact")
    for name in ("list.json", "deep.json", "text.txt", "nowhere"):
        refused = minitron("verify", tmp_path / name)
        assert refused.code == 1
        assert "error: " in refused.err
        assert "hint: " in refused.err
