"""A search over the vocabulary and the depth: losses by bytes of the same text, what goes, and the next command."""

import json
import re
import shlex
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from minitron_cli.__main__ import run
from minitron_cli.checkpoint.reader import open_checkpoint
from minitron_cli.search.flags import search_request
from minitron_cli.search.result import Entry, SearchResult
from minitron_cli.search.shapes import enumerate_shapes
from minitron_cli.search.table import facts
from tests.prune.cutting import load
from tests.spellers import byte_level, made_text, save
from tests.toys import make_toy

SEQ, WINDOWS = 64, 12


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    """A finished search: (its command line, its directory)."""
    directory = tmp_path_factory.mktemp("search")
    model = make_toy("llama", directory / "model", vocab_size=648, max_position_embeddings=256)
    save(byte_level(made_text(400), 640), model)
    text, held_out = directory / "train.jsonl", directory / "valid.jsonl"
    for file, seed in ((text, 2), (held_out, 3)):
        file.write_text("".join(json.dumps({"text": one}) + "\n" for one in made_text(60, seed=seed)))
    scores = str(directory / "scores.safetensors")
    assert run(["importance", str(model), "--data", str(text), "--samples", "8", "--seq-len", "32", "-o", scores]) == 0
    line = ["search", str(model), "--params", "105K", "--tolerance", "10%", "--grid", "vocab=448,512,648",
            "--grid", "layers=2:3", "--scores", scores, "--data", str(text), "--eval-data", str(held_out),
            "--seq-len", str(SEQ), "--eval-windows", str(WINDOWS), "--measure", "4", "--refine", "2",
            "--refine-tokens", "2048", "--batch", "4", "-o", str(directory / "out")]  # fmt: skip
    assert run(line) == 0
    return line, directory / "out"


def found_in(output: Path) -> dict:
    return json.loads((output / "search.json").read_text())


def literal(model: Path, held_out: Path) -> list[tuple[int, float | None]]:
    """Bytes and bits of every token of the held-out text, cut into windows whose first token is not predicted."""
    tokenizer, loaded = AutoTokenizer.from_pretrained(model), load(model)
    byte_of = {char: byte for byte, char in bytes_to_unicode().items()}
    stream: list[tuple[int, int]] = []
    for line in held_out.read_text().splitlines():
        ids = tokenizer(json.loads(line)["text"], add_special_tokens=False).input_ids
        sizes = [len([byte_of[char] for char in token]) for token in tokenizer.convert_ids_to_tokens(ids)]
        stream += [*zip(ids, sizes), (tokenizer.eos_token_id, 0)]
    found: list[tuple[int, float | None]] = []
    for start in range(0, len(stream) - SEQ + 1, SEQ):
        ids = torch.tensor([[token for token, _ in stream[start : start + SEQ]]])
        with torch.no_grad():
            log_probs = loaded(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        bits = [None, *(-log_probs / np.log(2)).tolist()]
        found += [(size, b) for (_, size), b in zip(stream[start : start + SEQ], bits)]
    return found


def per_byte(tokens: list[tuple[int, float | None]], ends: list[int]) -> np.ndarray:
    """Bits per byte of each stretch that ends there, token by token."""
    sums, at, stretch = np.zeros((2, len(ends))), 0, 0
    for size, bits in tokens:
        at += size
        while stretch < len(ends) and at > ends[stretch]:
            stretch += 1
        if stretch == len(ends):
            break
        if bits is not None:
            sums[:, stretch] += bits, size
    return sums[0] / sums[1]


def test_losses_are_bits_per_byte_of_the_same_text(searched: tuple[list[str], Path]) -> None:
    """The source, cuts and what was distilled, against transformers and a walk over the tokens."""
    line, output = searched
    held_out, found = Path(line[line.index("--eval-data") + 1]), found_in(output)
    source = literal(Path(line[1]), held_out)
    ends = np.cumsum([size for size, _ in source])[SEQ - 1 :: SEQ][:WINDOWS].tolist()
    assert found["source_loss"] == pytest.approx(per_byte(source, ends).mean(), rel=1e-5)
    assert found["unit"] == "bits per byte"
    measured = [candidate for candidate in found["candidates"] if candidate["loss"] is not None]
    assert len({candidate["shape"]["vocab"] for candidate in measured}) > 1
    for candidate in measured:
        losses = per_byte(literal(output / "candidates" / candidate["name"], held_out), ends)
        kept = json.loads((output / "losses" / f"{candidate['name']}.json").read_text())["result"]
        np.testing.assert_allclose(kept, losses, rtol=1e-5)
        assert candidate["loss"] == pytest.approx(losses.mean(), rel=1e-5)
    best = found["candidates"][0]
    after = per_byte(literal(output / "refined" / f"{best['name']}-2048", held_out), ends)
    assert best["refined"] == pytest.approx(after.mean(), rel=1e-5)


def test_the_forecast_counts_the_tokens_that_go(searched: tuple[list[str], Path]) -> None:
    line, output = searched
    found, tokenizer = found_in(output), AutoTokenizer.from_pretrained(line[1])
    uses: Counter[str] = Counter()
    for row in Path(line[line.index("--data") + 1]).read_text().splitlines():
        uses.update(tokenizer.tokenize(json.loads(row)["text"]))
        uses[tokenizer.eos_token] += 1
    whole = [c for c in found["candidates"] if c["shape"]["layer"] == 3 and c["loss"] is not None]
    assert whole
    for candidate in whole:
        kept = set(AutoTokenizer.from_pretrained(output / "candidates" / candidate["name"]).get_vocab())
        share = sum(n for token, n in uses.items() if token in kept) / sum(uses.values())
        expected = found["forecast_weights"]["vocab"] * -np.log(share)
        assert candidate["forecast"] == pytest.approx(expected, abs=1e-9)


def test_the_table_shows_the_trade(searched: tuple[list[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    line, output = searched
    capsys.readouterr()
    assert run(line) == 0
    shown = capsys.readouterr()
    assert "embeddings" in shown.out
    found = found_in(output)
    assert f"losses are in bits per byte of held-out text (the source: {found['source_loss']:.4f})" in shown.err
    assert found["longer"]["448"] > found["longer"]["512"] > 0
    assert f"{found['longer']['448']:+.1%}" in shown.out


def test_the_next_command_counts_the_same_text(searched: tuple[list[str], Path], tmp_path: Path) -> None:
    """That of a search whose best shape has a cut vocabulary."""
    line, output = searched
    text = line[line.index("--data") + 1]
    request = search_request(
        line[1], params=105_000, grid=("vocab=448",), scores=Path(line[line.index("--scores") + 1]), data=(text,)
    )
    source = open_checkpoint(line[1])
    (candidate,) = enumerate_shapes(source, request)
    found = facts(SearchResult(source.shape, None, [Entry(candidate, 0.0)]), request)
    assert found["step"]["options"] == {"vocab": 448}
    assert found["step"]["inputs"] == {"model": line[1], "scores": str(request.scores), "data": text}
    assert run([*shlex.split(found["next"])[1:], "-o", str(tmp_path / "small")]) == 0
    (same,) = [c["name"] for c in found_in(output)["candidates"] if c["shape"] == dict(candidate.shape.sizes)]
    places = (tmp_path / "small", output / "candidates" / same)
    mine, theirs = ((place / "tokenizer.json").read_text() for place in places)
    assert mine == theirs


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--data": None}, "needs text to count tokens on"),
        ({"--grid": "vocab=64,512"}, "--vocab 64 is too small"),
        ({"--bench-grid": "8x2"}, "times are per token"),
    ],
)
@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_what_cannot_be_searched_is_refused(
    change: dict[str, str | None], message: str, dry: list[str], searched: tuple[list[str], Path], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    line = [*searched[0][:-1], str(tmp_path / "none"), *dry]
    for flag, value in change.items():
        if flag in line:
            at = line.index(flag)
            line[at : at + 2] = [] if value is None else [flag, value]
        else:
            line += [flag, str(value)]
    assert run(line) == 1
    stderr = capsys.readouterr().err
    assert message in stderr
    assert re.search(r"^error: .*\nhint: ", stderr, re.MULTILINE)
    assert not (tmp_path / "none").exists()


def test_candidates_of_other_text_are_not_reused(
    searched: tuple[list[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line, output = searched
    other = tmp_path / "other.jsonl"
    other.write_text("".join(json.dumps({"text": one}) + "\n" for one in made_text(60, seed=9)))
    at = line.index("--data")
    assert run([*line[: at + 1], str(other), *line[at + 2 :]]) == 1
    assert f"{output} was created with different settings: counted" in capsys.readouterr().err
