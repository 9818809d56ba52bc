"""Steps that are written while others are trained: the bytes of those that are waited for, one at a time, errors."""

import errno
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from minitron_cli.errors import MinitronError
from minitron_cli.hf.process_group import World
from minitron_cli.training import announce, state
from minitron_cli.training.load import load_student
from minitron_cli.training.metrics import read_metrics
from minitron_cli.training.optimizer import build
from minitron_cli.training.prepare import prepare
from minitron_cli.training.run import rehearse, train
from minitron_cli.training.saving import Saver
from minitron_cli.training.state import Progress, prime
from minitron_cli.training.step import kd_step
from tests.training.runs import options, write_text

Toy = Callable[..., Path]
ALONE = World(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "text.jsonl")


@pytest.fixture
def job(toy: Toy) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    step = kd_step(load_student(toy("llama"), from_scratch=False, seed=0), [])
    optimizer = build(step, (), (0.9, 0.95), 1e-8, 0.1)
    prime(optimizer)
    return step, optimizer


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """The thread writes nothing until the event is set."""
    event, write = threading.Event(), state.write

    def held(*args: Any) -> Path:
        assert event.wait(60)
        return write(*args)

    monkeypatch.setattr(state, "write", held)
    yield event
    event.set()


def files_of(step: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in step.iterdir()}


def test_it_writes_what_was_there_when_it_was_told_to(
    job: tuple[torch.nn.Module, torch.optim.Optimizer], tmp_path: Path, gate: threading.Event
) -> None:
    """The same bytes as a save that is waited for, although every tensor changes meanwhile."""
    step, optimizer = job
    gate.set()
    state.save(tmp_path / "waited", step, optimizer, Progress(3), ALONE, keep=2)
    gate.clear()
    behind = Saver(tmp_path / "behind", step, optimizer, ALONE, 2, copies=True)
    behind.save(Progress(3))
    with torch.no_grad():
        for tensor in state.tensors(step, optimizer).values():
            tensor.add_(1)
    behind.raise_failure()
    assert not state.checkpoints(tmp_path / "behind")
    gate.set()
    behind.wait()
    behind.close()
    assert files_of(tmp_path / "behind" / "step-0000003") == files_of(tmp_path / "waited" / "step-0000003")
    between = Saver(tmp_path / "between", step, optimizer, ALONE, 2, copies=False)
    between.save(Progress(3))
    assert files_of(tmp_path / "between" / "step-0000003") != files_of(tmp_path / "waited" / "step-0000003")


def test_one_is_written_at_a_time_and_the_step_before_stands(
    job: tuple[torch.nn.Module, torch.optim.Optimizer], tmp_path: Path, gate: threading.Event
) -> None:
    saver = Saver(tmp_path, *job, ALONE, 1, copies=True)
    gate.set()
    saver.save(Progress(1))
    saver.wait()
    gate.clear()
    saver.save(Progress(2))
    assert [path.name for path in state.checkpoints(tmp_path)] == ["step-0000001"]
    second = threading.Thread(target=saver.save, args=(Progress(3),))
    second.start()
    second.join(0.2)
    assert second.is_alive(), "it waits for the one before"
    gate.set()
    second.join(60)
    saver.wait()
    saver.close()
    assert [path.name for path in state.checkpoints(tmp_path)] == ["step-0000003"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-0000003"]


@pytest.mark.parametrize("at", [4, 12])
def test_an_error_of_the_writer_stops_the_run_and_leaves_the_step_before(
    at: int, toy: Toy, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether further steps follow, or the run is at its end."""
    write_shard = state.write_shard

    def fails(file: Path, tensors: Any) -> str:
        if f"step-{at:07d}" in str(file):
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_shard(file, tensors)

    monkeypatch.setattr(state, "write_shard", fails)
    line = options(toy("llama"), text, tmp_path / "out", save_every=2, async_save=True)
    with pytest.raises(MinitronError, match=f"no space left for .*step-{at:07d}"):
        train(line)
    run = tmp_path / "out" / "run"
    assert state.checkpoints(run)[-1].name == f"step-{at - 2:07d}"
    assert not [path for path in run.iterdir() if path.name.startswith(".")]
    assert not (tmp_path / "out" / "minitron.json").exists()
    monkeypatch.setattr(state, "write_shard", write_shard)
    assert train(line).progress.step == 12
    assert [entry["step"] for entry in read_metrics(run)] == list(range(1, 13))


def test_both_ways_train_and_leave_the_same(toy: Toy, text: Path, tmp_path: Path) -> None:
    for way in (True, False):
        train(options(toy("llama"), text, tmp_path / str(way), save_every=2, keep=9, async_save=way))
    for step in range(2, 13, 2):
        one, other = (files_of(tmp_path / str(way) / "run" / f"step-{step:07d}") for way in (True, False))
        assert one.keys() == other.keys()
        assert all(one[name] == other[name] for name in one if name != "state.json")  # that one says how long it took


def test_it_is_chosen_on_a_gpu_where_a_copy_fits(
    toy: Toy, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By hand, of two processes: both hold 12 bytes a parameter in halves, the first gathers the student twice."""
    monkeypatch.setattr(announce, "_LARGEST_BLOCK", 0)
    line, gpus = options(toy("llama"), text, tmp_path / "out", gradients="whole"), World(0, 2, torch.device("cuda"), 2)
    ready = prepare(line, World(0, 2, ALONE.device, 2))
    whole = (4 + 4) * ready.trained + 12 * ready.trained // 2
    for free, chosen in ((whole, True), (whole - 1, False)):
        monkeypatch.setattr(announce, "free_host_memory", lambda free=free: free)
        assert announce.settle(ready, gpus).options.async_save is chosen
    monkeypatch.setattr(announce, "free_host_memory", lambda: 10 * whole)
    assert announce.settle(ready, gpus, agree=lambda short: True).options.async_save is False
    assert announce.settle(ready, ALONE).options.async_save is False


def test_where_no_copy_fits_one_is_refused_before_the_run(
    toy: Toy, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = options(toy("llama"), text, tmp_path / "out", async_save=True)
    ready = prepare(replace(line, async_save=False), ALONE)
    monkeypatch.setattr(announce, "_LARGEST_BLOCK", 0)
    without = announce.host_memory(ready, ALONE)[0]
    monkeypatch.setattr(announce, "free_host_memory", lambda: without)
    for attempt in (lambda: rehearse(line, 1)[1](), lambda: train(line)):
        with pytest.raises(MinitronError, match="--async-save copies what it writes"):
            attempt()
    assert not (tmp_path / "out").exists()
    assert train(replace(line, async_save=None)).options.async_save is False
