"""Warm-up, stable, decay: a decay that starts from a stable checkpoint of another run."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from minitron_cli.errors import MinitronError
from minitron_cli.training.metrics import read_metrics
from minitron_cli.training.run import train
from tests.training.runs import options, signal_after, write_text

Toy = Callable[..., Path]
WSD = {"schedule": "wsd", "warmup": 2, "weight_decay": 0.1}


def test_a_branch_is_the_run_that_was_planned_that_long(toy: Toy, text: Path, tmp_path: Path) -> None:
    """12 steps with a decay over the last 4 = the stable part of a longer run, branched off at step 8."""
    train(options(toy("llama"), text, tmp_path / "planned", steps=12, decay_fraction=4 / 12, **WSD))
    train(options(toy("llama"), text, tmp_path / "stable", steps=40, keep=20, **WSD), say=lambda _: None)
    branch = options(
        toy("llama"), text, tmp_path / "branch", steps=12, branch_from=str(tmp_path / "stable/run/step-0000008"), **WSD
    )
    with signal_after(10):
        train(branch)
    outcome = train(branch)
    assert outcome.progress.step == 12
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("planned", "branch"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    rates = [line["lr"] for line in read_metrics(tmp_path / "branch" / "run")]
    assert len(rates) == 4
    assert rates == [line["lr"] for line in read_metrics(tmp_path / "planned" / "run")][8:]


@pytest.mark.parametrize(
    ("steps", "changes", "message"),
    [
        (8, {}, "--steps 8 is no longer than the run that is branched from (step 8)"),
        (12, {"seed": 1}, "--seed 0 there, 1 here"),
        (12, {"batch": 8}, "--batch 4 there, 8 here"),
    ],
)
def test_refused_branches(steps: int, changes: dict, message: str, toy: Toy, text: Path, tmp_path: Path) -> None:
    train(options(toy("llama"), text, tmp_path / "stable", steps=10, keep=9, decay_fraction=0.1, **WSD))
    origin = str(tmp_path / "stable/run/step-0000008")
    with pytest.raises(MinitronError, match=re.escape(message)):
        train(options(toy("llama"), text, tmp_path / "b", steps=steps, branch_from=origin, **{**WSD, **changes}))


def test_a_branch_on_other_data_is_refused(toy: Toy, text: Path, tmp_path: Path) -> None:
    train(options(toy("llama"), text, tmp_path / "stable", steps=10, keep=9, decay_fraction=0.1, **WSD))
    origin = str(tmp_path / "stable/run/step-0000008")
    other = write_text(tmp_path / "other.jsonl", seed=4)
    with pytest.raises(MinitronError, match="other data there than here"):
        train(options(toy("llama"), other, tmp_path / "b", steps=12, branch_from=origin, **WSD))


def test_a_checkpoint_inside_a_decay_is_refused(toy: Toy, text: Path, tmp_path: Path) -> None:
    train(options(toy("llama"), text, tmp_path / "run", steps=10, keep=9, decay_fraction=0.5, **WSD))
    origin = str(tmp_path / "run/run/step-0000008")
    with pytest.raises(MinitronError, match="was falling at step 8"):
        train(options(toy("llama"), text, tmp_path / "b", steps=12, branch_from=origin, **WSD))
    with pytest.raises(MinitronError, match="is no checkpoint"):
        train(options(toy("llama"), text, tmp_path / "b", steps=12, branch_from=str(tmp_path / "run"), **WSD))
