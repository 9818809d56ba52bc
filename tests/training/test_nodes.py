"""Two torchrun agents on this machine, as on two nodes: weights copied between them, sharded inside each."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from minitron_cli.errors import MinitronError
from minitron_cli.hf.process_group import World
from minitron_cli.training.metrics import read_metrics
from minitron_cli.training.prepare import prepare
from minitron_cli.training.run import train
from tests.toys import make_toy
from tests.training.runs import options, write_text
from tests.training.test_distributed import REPOSITORY, environment

STEPS = 3


def agents(count: int, line: list[str]) -> None:
    """The README's line for Slurm, with one agent started for each of its nodes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", str(count), "--nproc-per-node", "2"]
    rendezvous = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{port}"]
    command = [*torchrun, *rendezvous, "-m", "minitron_cli", *line]
    started = [
        subprocess.Popen(
            command, cwd=REPOSITORY, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for _ in range(count)
    ]
    try:
        said = [process.communicate(timeout=400)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * count, said[0][-3000:] + said[-1][-3000:]


@pytest.mark.slow
def test_two_nodes_make_what_one_process_makes(tmp_path: Path) -> None:
    student = make_toy("llama", tmp_path / "student", tie_word_embeddings=True)
    teacher, text = make_toy("llama", tmp_path / "teacher", seed=5), write_text(tmp_path / "text.jsonl")
    fixed = {"steps": STEPS, "batch": 8, "micro_batch": 1, "save_every": 3, "warmup": 0}
    line = ["distill", str(student), "--teacher", str(teacher), "--data", str(text), "-o", str(tmp_path / "nodes")]
    numbers = [f"--{name.replace('_', '-')}={value}" for name, value in fixed.items()]
    more = ["--seq-len", "32", "--lr", "1e-3", "--device", "cpu", "--replicate", "2", "--gradients", "sharded"]
    agents(2, [*line, *numbers, *more])
    train(options(student, text, tmp_path / "alone", teacher, **fixed))
    metrics = [read_metrics(tmp_path / name / "run") for name in ("nodes", "alone")]
    for there, here in zip(*metrics, strict=True):
        assert there["loss"] == pytest.approx(here["loss"], rel=2e-5)
        assert there["grad_norm"] == pytest.approx(here["grad_norm"], rel=2e-5)
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("nodes", "alone")]
    assert weights[0].keys() == weights[1].keys()
    for name, weight in weights[1].items():
        torch.testing.assert_close(weights[0][name], weight, rtol=1e-4, atol=1e-5)
    # One of the two copies was saved, and one process goes on with it.
    going_on = options(student, text, tmp_path / "nodes", teacher, **{**fixed, "steps": STEPS})
    (tmp_path / "nodes" / "minitron.json").unlink()
    (tmp_path / "nodes" / "model.safetensors").unlink()
    said: list[str] = []
    train(going_on, say=said.append)
    assert any(text.startswith(f"continuing from step {STEPS}") for text in said)
    again = load_file(tmp_path / "nodes" / "model.safetensors")
    assert all(torch.equal(again[name], weights[0][name]) for name in again)


def test_copies_must_divide_the_processes(tmp_path: Path) -> None:
    student, text = make_toy("llama", tmp_path / "student"), write_text(tmp_path / "text.jsonl")
    line = options(student, text, tmp_path / "out", replicate=2, batch=6)
    with pytest.raises(MinitronError, match="--replicate 2: 3 processes do not make as many copies"):
        prepare(line, World(0, 3, torch.device("cpu"), 3))
