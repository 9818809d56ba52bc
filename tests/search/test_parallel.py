"""Refinement on several devices: the same models and the same table as one after the other; failures stop the rest."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from minitron_cli.__main__ import run
from minitron_cli.checkpoint.provenance import file_digest
from minitron_cli.errors import MinitronError
from minitron_cli.search.parallel import Work, parse_devices, run_all
from tests.training.runs import write_text


def _quiet(text: str) -> None:
    pass


def _work(tmp_path: Path, name: str, *words: str) -> Work:
    return Work(name, words, tmp_path / f"{name}.log")


@pytest.fixture
def line(toy: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A search that refines two shapes, but for its output and its devices."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    model, text = str(toy("llama")), str(write_text(tmp_path / "text.jsonl"))
    scores = str(tmp_path / "scores.safetensors")
    assert run(["importance", model, "--data", text, "--samples", "8", "--seq-len", "32", "-o", scores]) == 0
    return ["search", model, "--params", "60K", "--tolerance", "20%", "--grid", "ffn=40,88", "--grid", "layers=2,3",
            "--scores", scores, "--data", text, "--seq-len", "32", "--eval-windows", "8", "--measure", "2",
            "--refine", "2", "--refine-tokens", "512", "--batch", "4", "--lr", "1e-3", "--seed", "3",
            "--device", "cpu"]  # fmt: skip


def _both_ways(line: list[str], directory: Path) -> set[Path]:
    """Refine on one device and on two, and compare; returns the weights that were made, relative to the output."""
    one, two = directory / "one", directory / "two"
    assert run([*line, "-o", str(one)]) == 0
    assert run([*line, "--devices", "cpu,cpu", "-o", str(two)]) == 0
    found = [json.loads((out / "search.json").read_text())["candidates"] for out in (one, two)]
    assert found[0] == found[1]
    weights = {f.relative_to(one) for f in (one / "refined").rglob("model.safetensors")}
    assert weights == {f.relative_to(two) for f in (two / "refined").rglob("model.safetensors")}
    for file in weights:
        assert file_digest(one / file) == file_digest(two / file)
    return weights


def test_the_first_round_is_the_same_on_two_devices(
    line: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from minitron_cli.search import refine

    monkeypatch.setattr(refine, "hopeless", lambda *_: True)
    assert len(_both_ways(line, tmp_path)) == 2


@pytest.mark.slow
def test_the_same_models_and_table_as_one_after_the_other(line: list[str], tmp_path: Path) -> None:
    assert len(_both_ways(line, tmp_path)) >= 3, "two early ones, and at least one that went on"


def test_as_many_at_once_as_there_are_devices(tmp_path: Path) -> None:
    said: list[str] = []
    works = [_work(tmp_path, f"w{i}", "no-such-verb" if i == 9 else "--version") for i in range(3)]
    with pytest.raises(MinitronError) as failed:
        run_all([*works, _work(tmp_path, "bad", "no-such-verb")], ["cpu", "cpu"], said.append)
    assert [line.split()[1] for line in said][:2] == ["w0", "w1"]
    assert "ended with exit code 2" in failed.value.message
    assert str(tmp_path) in (failed.value.hint or "")


def test_sigterm_stops_every_training(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom minitron_cli.search import parallel\n"
        "parallel.sys.executable = sys.argv[1]\n"
        "works = [parallel.Work(str(i), (), Path(sys.argv[2]) / f'{i}.log') for i in range(2)]\n"
        "parallel.run_all(works, ['cpu', 'cpu'], print)\n"
    )
    sleeper = tmp_path / "sleeper"
    sleeper.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/$$.pid\nexec sleep 600\n")
    sleeper.chmod(0o755)
    process = subprocess.Popen([sys.executable, "-c", code, str(sleeper), str(tmp_path)], stdout=subprocess.DEVNULL)
    while len(pids := list(tmp_path.glob("*.pid"))) < 2:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 143
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid.stem), 0)


def test_devices_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    assert parse_devices(None) == ()
    assert parse_devices("cpu, cpu") == ("cpu", "cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert parse_devices("all") == ("cuda:0", "cuda:1", "cuda:2")
    assert parse_devices("cuda:2,cpu") == ("cuda:2", "cpu")
    assert parse_devices(None) == ("cuda:0", "cuda:1", "cuda:2"), "several are used without being asked for"
    assert parse_devices(None, "cuda:1") == ()
    with pytest.raises(MinitronError, match="cuda:1 twice"):
        parse_devices("cuda:1,cuda:1")
    with pytest.raises(MinitronError, match="3 GPUs are visible"):
        parse_devices("cuda:3")


def test_all_without_a_gpu_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(MinitronError, match="no GPU is visible"):
        parse_devices("all")
