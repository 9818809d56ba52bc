"""Several processes record a teacher, and several read it: what one makes."""

import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from minitron_cli.training.metrics import read_metrics
from tests.toys import make_toy
from tests.training.runs import write_text
from tests.training.server import Behaviour, serving
from tests.training.test_distributed import start


@pytest.fixture
def line(tmp_path: Path) -> Callable[..., list[str]]:
    student, teacher = make_toy("llama", tmp_path / "student"), make_toy("llama", tmp_path / "large", seed=5)
    text = write_text(tmp_path / "text.jsonl")

    def get(steps: int, of: Path | str | None, *more: str) -> list[str]:
        fixed = ["--batch", "4", "--micro-batch", "2", "--seq-len", "32", "--device", "cpu", "--steps", str(steps)]
        fixed += ["--teacher", str(of or teacher), "--no-cross-doc", "--top-k", "8"]
        return ["distill", str(student), "--data", str(text), "-o", str(tmp_path / "out"), *fixed, *more]

    return get


def contents(directory: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in directory.iterdir()}


@pytest.mark.slow
def test_two_processes_record_and_read_what_one_does(line: Callable[..., list[str]], tmp_path: Path) -> None:
    for name, nproc in (("one", "1"), ("two", "2")):
        done = start(line(7, None, "--record-teacher", str(tmp_path / name), "--nproc", nproc))
        stdout, stderr = done.communicate(timeout=300)
        assert done.returncode == 0, stderr[-3000:]
        assert stdout.count("tokens recorded") == 1
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    for name, nproc in (("one", "1"), ("two", "2")):
        output = ["-o", str(tmp_path / f"by-{name}"), "--lr", "1e-3", "--nproc", nproc]
        done = start(line(7, tmp_path / "two", *output))
        assert done.wait(timeout=300) == 0
    one, two = ([m["kd"] for m in read_metrics(tmp_path / f"by-{name}" / "run")] for name in ("one", "two"))
    np.testing.assert_allclose(one, two, rtol=1e-5)


@pytest.mark.slow
def test_two_processes_ask_a_server_what_one_does(
    line: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    behaviour = Behaviour()
    with serving(tmp_path / "large", behaviour) as address:
        for nproc in ("1", "2"):
            output = ["-o", str(tmp_path / f"by-{nproc}"), "--lr", "1e-3", "--nproc", nproc]
            process = start(line(3, address, *output))
            assert process.wait(timeout=300) == 0, process.communicate()[1][-3000:]
    one, two = ([m["kd"] for m in read_metrics(tmp_path / f"by-{nproc}" / "run")] for nproc in ("1", "2"))
    np.testing.assert_allclose(one, two, rtol=1e-5)
    # 12 rows each time, and the question before a run: by one process; by the launcher and both of its workers.
    assert len(behaviour.asked) == (12 + 1) + (12 + 3)


@pytest.mark.slow
def test_a_signal_stops_all_processes_and_one_goes_on(line: Callable[..., list[str]], tmp_path: Path) -> None:
    steps = 60
    process = start(line(steps, None, "--record-teacher", str(tmp_path / "cut"), "--nproc", "2"))
    deadline = time.monotonic() + 180
    while not list((tmp_path / "cut").glob("top-0*.bin")):
        assert process.poll() is None, process.communicate()[1][-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    stdout, stderr = process.communicate(timeout=120)
    assert "Traceback" not in stderr
    if process.returncode:  # else it was faster than the signal
        assert process.returncode == 143, stderr[-3000:]
        assert "type the same line again" in stdout
        assert not (tmp_path / "cut" / "header.json").exists()
    for name in ("cut", "whole"):
        assert start(line(steps, None, "--record-teacher", str(tmp_path / name))).wait(timeout=300) == 0
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
