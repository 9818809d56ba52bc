"""Kill -9 at random moments, go on each time: the end is bitwise that of a run nobody disturbed."""

import multiprocessing
import os
import random
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from minitron_cli.chain.shear import trim
from minitron_cli.training import state
from minitron_cli.training.metrics import read_metrics
from minitron_cli.training.options import Options
from minitron_cli.training.run import train
from tests.training.mixing import dynamic
from tests.training.runs import options, write_text

# A forked child starts at once, with torch loaded, so that the moments fall into training and saving, not into imports.
FORK = multiprocessing.get_context("fork")


def in_child(line: Options, run: Callable[[Options], object]) -> "multiprocessing.process.BaseProcess":
    process = FORK.Process(target=run, args=(line,))
    process.start()
    return process


pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@pytest.mark.slow
def test_ten_kills_change_nothing(toy: Callable[..., Path], tmp_path: Path) -> None:
    text, teacher = write_text(tmp_path / "text.jsonl"), toy("llama", hidden_size=66, seed=5)
    common = {
        "steps": 90,
        "save_every": 3,
        "async_save": True,
        "loss": "logits+hidden",
        "eval_data": (str(text),),
        "eval_every": 10,
    }
    kill_and_compare(lambda name: options(toy("llama"), text, tmp_path / name, teacher, **common), tmp_path, 10)


@pytest.mark.parametrize("kills", [3, pytest.param(10, marks=pytest.mark.slow)])
def test_kills_change_nothing_of_a_dynamic_mix(kills: int, toy: Callable[..., Path], tmp_path: Path) -> None:
    """Killed before, while and after the weights of the data are computed and saved."""
    student, steps = toy("llama"), 9 * kills

    def line(name: str) -> Options:
        changes = {"mix_rate": 0.5, "save_every": 2, "async_save": True}
        return dynamic(student, tmp_path, tmp_path / name, steps=steps, **changes)

    kill_and_compare(line, tmp_path, kills)
    mixes = [state.read_progress(state.checkpoints(tmp_path / n / "run")[-1]).mix for n in ("whole", "killed")]
    assert mixes[0] == mixes[1]
    assert len(mixes[0]) == steps // 3 - 1


@pytest.mark.parametrize("kills", [3, pytest.param(10, marks=pytest.mark.slow)])
def test_kills_change_nothing_of_learned_masks(kills: int, toy: Callable[..., Path], tmp_path: Path) -> None:
    """Masks, multipliers and their moments go on, the draws repeat; the cut that follows has the same bytes."""
    text, student = write_text(tmp_path / "text.jsonl"), toy("llama")
    common = {"verb": "shear", "sizes": ("ffn=56", "heads=4", "hidden=36", "layers=2"), "max_gap": 1.0, "save_every": 2}

    def line(name: str) -> Options:
        return options(student, text, tmp_path / name, **{**common, "steps": 9 * kills})

    kill_and_compare(line, tmp_path, kills, partial(train, trim=trim))
    plans = [(tmp_path / name / "kept_indices.safetensors").read_bytes() for name in ("whole", "killed")]
    assert plans[0] == plans[1]


def kill_and_compare(
    line: Callable[[str], Options], tmp_path: Path, count: int, run: Callable[[Options], object] = train
) -> None:
    """Train line("whole") undisturbed and line("killed") with `count` kills; everything they leave must be equal."""
    torch.set_num_threads(1)
    started = time.perf_counter()
    run(line("whole"))
    seconds = time.perf_counter() - started

    moments, kills, output = random.Random(7), 0, tmp_path / "killed"
    while kills < count:
        process = in_child(line("killed"), run)
        process.join(timeout=moments.uniform(0.05, seconds * 1.25 / count))
        assert process.is_alive(), f"the run ended by itself after {kills} kills ({process.exitcode})"
        process.kill()
        process.join()
        kills += 1
        assert not (output / "minitron.json").exists()
        for saved in state.checkpoints(output / "run"):
            assert state.read_progress(saved).step == int(saved.name.removeprefix("step-"))
    last = in_child(line("killed"), run)
    last.join()
    assert last.exitcode == 0

    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not [p.name for p in (output / "run").iterdir() if p.name.startswith(".")]
    timed = ("tokens_per_second", "peak_memory")
    whole, killed = (
        [{k: v for k, v in entry.items() if k not in timed} for entry in read_metrics(tmp_path / name / "run")]
        for name in ("whole", "killed")
    )
    assert whole == killed
