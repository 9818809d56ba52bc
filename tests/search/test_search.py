"""The search on a toy: stages in order, ties by paired errors, everything found again, a runnable next command."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import AutoTokenizer

from minitron_cli.__main__ import run
from minitron_cli.search.picture import pareto
from minitron_cli.search.refine import hopeless
from minitron_cli.search.result import Entry, mark_ties
from minitron_cli.spec.search import Candidate
from minitron_cli.spec.shape import Shape
from tests.prune.cutting import load


def _entry(losses: np.ndarray | None, refined: np.ndarray | None = None) -> Entry:
    return Entry(Candidate(Shape({}), 1, 1), 0.0, losses, refined)


def test_a_tie_is_judged_on_the_same_windows() -> None:
    base = np.linspace(1, 9, 50)  # windows differ far more than models do
    alike = base + 0.02 * np.cos(np.arange(50) * 2.4)
    worse = base + 0.05
    entries = [_entry(base), _entry(alike), _entry(worse), _entry(None)]
    mark_ties(entries)
    assert [entry.tied for entry in entries] == [False, True, False, False]


def test_only_what_is_clearly_behind_is_given_up() -> None:
    best, start = np.full(40, 2.0), np.full(40, 4.0)
    noise = 0.01 * np.cos(np.arange(40))
    assert hopeless(best + 0.5 + noise, best, start)
    assert not hopeless(best + 0.1 + noise, best, start), "a gap small against what training has won can still flip"
    assert not hopeless(best + 0.5 + 200 * noise, best, start), "a gap inside the noise says nothing"
    assert not hopeless(best, best, start)


def test_the_front_is_what_nothing_beats_on_both() -> None:
    assert pareto([(1, 5), (2, 3), (3, 4), (4, 1), (2, 6)]) == [(1, 5), (2, 3), (4, 1)]


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory, toy) -> tuple[list[str], Path]:
    """A finished search of a toy llama: (its command line, its directory)."""
    directory = tmp_path_factory.mktemp("search")
    text = directory / "text.jsonl"
    rng = np.random.default_rng(0)
    lines = ["".join(rng.choice(list("abc de"), 200)) for _ in range(40)]
    text.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    model, scores = str(toy("llama")), str(directory / "scores.safetensors")
    assert run(["importance", model, "--data", str(text), "--samples", "16", "--seq-len", "32", "-o", scores]) == 0
    line = ["search", model, "--params", "60K", "--tolerance", "20%", "--grid", "ffn=40:88:16", "--grid", "layers=2:3",
            "--scores", scores, "--data", str(text), "--seq-len", "32", "--eval-windows", "16", "--measure", "3",
            "--refine", "2", "--refine-tokens", "1024", "--batch", "4", "-o", str(directory / "out")]  # fmt: skip
    assert run(line) == 0
    return line, directory / "out"


def test_each_stage_takes_the_best_of_the_one_before(searched: tuple[list[str], Path]) -> None:
    """Forecasts by hand, from the scores and the weights that were found: -log of the share that each cut keeps."""
    line, output = searched
    found = json.loads((output / "search.json").read_text())
    scores = load_file(line[line.index("--scores") + 1])
    shapes = found["candidates"]
    for candidate in shapes:
        layers, ffn = candidate["shape"]["layer"], candidate["shape"]["ffn"]
        influence, energy = scores["layer"], np.square(scores["ffn"])
        kept = np.sort(np.argsort(-influence, kind="stable")[:layers])
        shares = np.sort(energy[kept])[:, ::-1][:, :ffn].sum(1) / energy[kept].sum(1)
        lost = {"layer": -np.log(influence[kept].sum() / influence.sum()), "ffn": -np.log(shares.mean())}
        forecast = sum(found["forecast_weights"][axis] * value for axis, value in lost.items())
        assert candidate["forecast"] == pytest.approx(forecast, abs=1e-9)
    by_forecast = sorted(shapes, key=lambda c: c["forecast"])
    measured = [c for c in shapes if c["loss"] is not None]
    assert {c["name"] for c in measured} == {c["name"] for c in by_forecast[:3]}
    by_loss = sorted(measured, key=lambda c: c["loss"])
    refined = [c for c in shapes if c["refined"] is not None]
    assert refined
    assert {c["name"] for c in refined} <= {c["name"] for c in by_loss[:2]}
    after = sorted(refined, key=lambda c: c["refined"]) + [c for c in by_loss if c["refined"] is None]
    assert shapes == after + by_forecast[3:]
    assert (output / "pareto.svg").read_text().startswith("<?xml")


def test_losses_are_the_models_own(searched: tuple[list[str], Path]) -> None:
    """Of the source, a cut and a distilled candidate, as transformers computes them on the text's first windows."""
    line, output = searched
    found = json.loads((output / "search.json").read_text())
    best = found["candidates"][0]
    model = line[1]
    encoder = AutoTokenizer.from_pretrained(model)
    text = [json.loads(row)["text"] for row in Path(line[line.index("--data") + 1]).read_text().splitlines()]
    stream = [token for row in text for token in (*encoder(row, add_special_tokens=False)["input_ids"], 2)]
    windows = torch.tensor(stream[: 16 * 32]).view(16, 32)
    refined = output / "refined" / f"{best['name']}-1024"
    for place, loss in (
        (model, found["source_loss"]),
        (output / "candidates" / best["name"], best["loss"]),
        (refined, best["refined"]),
    ):
        loaded = load(Path(place))
        with torch.no_grad():
            expected = loaded(windows, labels=windows).loss
        assert loss == pytest.approx(float(expected), rel=1e-5)


def test_the_same_line_finds_everything_again(
    searched: tuple[list[str], Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from minitron_cli.search import refine, workspace

    def not_again(*_: object, **__: object) -> None:
        raise AssertionError("measured or trained twice")

    monkeypatch.setattr(workspace, "_measure", not_again)
    monkeypatch.setattr(refine, "train", not_again)
    before = json.loads((searched[1] / "search.json").read_text())
    assert run([*searched[0], "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == before


def test_the_next_command_runs(searched: tuple[list[str], Path], tmp_path: Path) -> None:
    found = json.loads((searched[1] / "search.json").read_text())
    assert run([*shlex.split(found["next"])[1:], "-o", str(tmp_path / "small")]) == 0
    config = json.loads((tmp_path / "small" / "config.json").read_text())
    assert config["intermediate_size"] == found["candidates"][0]["shape"]["ffn"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "a search needs a budget"),
        (["--params", "60K"], "ranking needs --scores and --data"),
        (["--params", "60K", "--tolerance", "lots"], "--tolerance lots is not a share"),
        (["--params", "60K", "--grid", "fnn=1"], "did you mean 'ffn'"),
        (["--params", "60K", "--grid", "ffn=a"], "cannot be read"),
        (["--params", "9B", "--list"], "no shape on the grid has"),
        (["--params", "60K", "--grid", "ffn=0:8"], "names no sizes"),
        (["--params", "60K", "--grid", "ffn=1:8:0"], "cannot be read"),
        (["--params", "60K", "--grid", "layers=1:999999999999"], "lists 999,999,999,999 sizes"),
        (["--params", "60K", "--grid", "layers=1:9999999999999999999999"], "cannot be read"),
        (["--params", "60K", "--grid", "ffn=1:5000", "--grid", "hidden=1:5000", "--list"], "the grid has 25,000,000"),
        (["--params", "60K", "--seed", "-1"], "--seed must be at least 0; got -1"),
        (["--params", "60K", "--lr", "nan"], "--lr must be above 0; got nan"),
        (
            ["--params", "60K", "--measure", "0", "--seq-len", "1"],
            "--measure must be at least 1; got 0; --seq-len",
        ),
    ],
)
def test_bad_input(words: list[str], message: str, toy, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["search", str(toy("llama")), *words]) == 1
    stderr = capsys.readouterr().err
    assert re.search(r"^error: .*\nhint: ", stderr, re.MULTILINE)
    assert message in stderr


def test_nothing_of_other_settings_is_reused(
    searched: tuple[list[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line, output = searched
    assert run([*line, "--lr", "3e-4"]) == 1
    assert re.search(
        r"refined/\S+ was created with different settings: lr was 0.0001, is 0.0003", capsys.readouterr().err
    )
    assert run([*line, "--seq-len", "16"]) == 1
    assert f"{output} was created with different settings: seq_len was 32, is 16" in capsys.readouterr().err
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("keep")
    assert run([*line[:-1], str(tmp_path / "notes")]) == 1
    assert "exists and holds no search" in capsys.readouterr().err


def test_a_dry_run_refuses_what_the_search_refuses(
    searched: tuple[list[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line, _ = searched
    scores = line.index("--scores")
    for given, told in [
        ([*line[:scores], *line[scores + 2 : -1], "none"], "ranking needs --scores"),
        ([*line[: scores + 1], "nope", *line[scores + 2 : -1], "none"], "no scores file at nope"),
        ([*line[:-1], "/proc/search"], "/proc takes no files"),
    ]:
        for dry in (["--dry-run"], []):
            assert run([*given, *dry]) == 1
            assert told in capsys.readouterr().err


def test_a_dry_run_bounds_what_the_search_took(
    searched: tuple[list[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line, output = searched
    assert run([*line[:-1], str(tmp_path / "none"), "--dry-run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert not (tmp_path / "none").exists()
    trained = [json.loads(f.read_text())["training"]["tokens"] for f in output.glob("refined/*/minitron.json")]
    assert found["trained_tokens"] == 2 * (2 + 8) * 4 * 32, "two shapes, a quarter and the whole of 1024 tokens"
    assert sum(trained) <= found["trained_tokens"]
    assert len(list(output.glob("candidates/*"))) <= found["cuts"] == 2 + 3
    cut = sum(f.stat().st_size for f in output.glob("candidates/*/model.safetensors"))
    assert cut <= found["disk_bytes"]
    assert run([*line[:-1], str(tmp_path / "none"), "--dry-run"]) == 0
    assert "GPU hours" in capsys.readouterr().out
