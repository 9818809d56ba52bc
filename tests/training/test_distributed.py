"""Two processes on gloo make what one makes, and read one another's checkpoints."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from minitron_cli.errors import MinitronError
from minitron_cli.hf.process_group import World
from minitron_cli.training import state
from minitron_cli.training.launch import outcome
from minitron_cli.training.metrics import read_metrics
from tests.toys import make_toy
from tests.training import worker
from tests.training.runs import write_text

MODES = ("whole", "sharded")
ALONE = World(0, 1, torch.device("cpu"))
REPOSITORY = Path(__file__).resolve().parents[2]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def run_both(root: Path) -> None:
    """Every case in two processes and in one, from the same worker."""
    make_toy("llama", root / "untied")
    make_toy("llama", root / "tied", tie_word_embeddings=True)
    make_toy("llama", root / "teacher", seed=5, hidden_size=66)
    make_toy("qwen3_moe", root / "experts")
    make_toy("llama", root / "larger", seed=5, hidden_size=66, vocab_size=120)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*torchrun, "-m", "tests.training.worker", str(root), str(root), *worker.CASES]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    for case in worker.CASES:
        worker.run(root, root, case, ALONE)


def distance(root: Path, case: str, part: str) -> float:
    """Relative distance of what two processes made from what one made: gradients, weights or reported values."""
    one, two = (load_file(root / f"{case}-{size}.safetensors") for size in (1, 2))
    assert one.keys() == two.keys()
    flat = [torch.cat([t.flatten() for n, t in sorted(f.items()) if n.startswith(part)]) for f in (one, two)]
    return float((flat[0] - flat[1]).norm() / flat[0].norm())


def modes_apart(file: Path) -> float:
    """Relative distance of gradients that were reduced after every micro-batch from those reduced after the last."""
    found = load_file(file)
    modes = [torch.cat([t.flatten() for n, t in sorted(found.items()) if n.startswith(f"grad.{m}")]) for m in MODES]
    return float((modes[0] - modes[1]).norm() / modes[0].norm())


def test_two_processes_make_what_one_makes(tmp_path: Path) -> None:
    """Weights as they are loaded or drawn, to the bit; gradients, weights after three clipped AdamW steps, every
    reported number; one process reads their checkpoint.

    One test and not many: starting two processes costs more than all of the comparisons.
    """
    run_both(tmp_path)
    limits = {"start": 1e-30, "grad": 2e-6, "weight": 2e-5, "value": 2e-5}
    found = {(case, part): distance(tmp_path, case, part) for case in worker.CASES for part in limits}
    assert {key: d for key, d in found.items() if not d < limits[key[1]]} == {}
    for case in worker.CASES:
        assert modes_apart(tmp_path / f"{case}-2.safetensors") < 1e-6
        of = worker.job(tmp_path, case, ALONE)
        progress = state.load(state.checkpoints(tmp_path / f"{case}-2")[-1], of.step, of.optimizer, ALONE)
        assert progress.step == 3
        two = load_file(tmp_path / f"{case}-2.safetensors")
        for name, p in of.step.named_parameters():
            assert torch.equal(p, two[f"weight.{name}"]), name
            assert float(of.optimizer.state[p]["step"]) == 3
            assert of.optimizer.state[p]["exp_avg_sq"].abs().max() > 0


@pytest.fixture
def line(tmp_path: Path) -> Callable[..., list[str]]:
    student, text = make_toy("llama", tmp_path / "student"), write_text(tmp_path / "text.jsonl")

    def get(output: str, *more: str) -> list[str]:
        fixed = ["--batch", "4", "--seq-len", "32", "--steps", "400", "--device", "cpu", "--lr", "1e-3"]
        return ["train", str(student), "--data", str(text), "-o", str(tmp_path / output), *fixed, *more]

    return get


def start(line: list[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "minitron_cli", *line]
    return subprocess.Popen(
        command, cwd=REPOSITORY, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for_steps(output: Path, count: int, process: subprocess.Popen[str]) -> None:
    """Until the run has logged `count` steps."""
    metrics, deadline = output / "run" / "metrics.jsonl", time.monotonic() + 180
    while not metrics.exists() or len(read_metrics(output / "run")) < count:
        assert process.poll() is None, process.communicate()[1][-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_stops_all_ranks_at_one_step_and_one_process_goes_on(
    number: signal.Signals, code: int, line: Callable[..., list[str]], tmp_path: Path
) -> None:
    process = start(line("out", "--nproc", "2"))
    wait_for_steps(tmp_path / "out", 3, process)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == code, stderr[-3000:]
    assert "type the same line again" in stdout
    assert "Traceback" not in stderr
    run = tmp_path / "out" / "run"
    stopped = state.read_progress(state.checkpoints(run)[-1]).step
    assert [entry["step"] for entry in read_metrics(run)] == list(range(1, stopped + 1))
    assert not (tmp_path / "out" / "minitron.json").exists()
    alone = start(line("out"))
    wait_for_steps(tmp_path / "out", stopped + 2, alone)
    alone.send_signal(number)
    assert alone.wait(timeout=120) == code


def test_what_one_process_refuses_is_said_once(line: Callable[..., list[str]], tmp_path: Path) -> None:
    """The first process alone looks at the output; the other one fails in the middle of waiting for it."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").touch()
    _, stderr = start(line("out", "--nproc", "2")).communicate(timeout=120)
    assert [text for text in stderr.splitlines() if not text.startswith("reading ")] == [
        f"error: {tmp_path / 'out'} exists and holds no run of minitron", "hint: choose another output with -o"
    ]  # fmt: skip


@pytest.mark.slow
def test_what_all_processes_refuse_is_said_once(line: Callable[..., list[str]]) -> None:
    process = start(line("out", "--nproc", "2", "--warmup", "0", "--grad-clip", "inf", "--lr", "1e18"))
    _, stderr = process.communicate(timeout=180)
    assert process.returncode == 1
    assert stderr.count("error: ") == stderr.count("hint: ") == 1
    assert "not finite in step" in stderr
    assert "Traceback" not in stderr


REFUSED = {"time": 2.0, "traceback": "MinitronError", "message": "no", "hint": "do"}
BUG = {"time": 1.0, "traceback": "the cause"}
SECONDARY = {"time": 3.0, "traceback": "Connection closed by peer"}


def test_of_several_failures_the_cause_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    for reports in ({0: SECONDARY, 1: REFUSED}, {0: REFUSED, 1: {**REFUSED, "time": 9.0}}):
        with pytest.raises(MinitronError, match=r"^no$"):
            outcome([1, 1], reports)
    assert outcome([1, 1], {0: SECONDARY, 1: BUG}) == 1
    assert "process 1 of 2 failed first:\nthe cause" in capsys.readouterr().err
    with pytest.raises(MinitronError, match=re.escape("killed 1 (SIGKILL)")):
        outcome([1, -9], {0: SECONDARY})
    assert outcome([143, 143], {}, [15]) == 143
    assert outcome([-15, 1], {1: SECONDARY}, [15]) == 143
    assert outcome([0, 0], {}) == 0
