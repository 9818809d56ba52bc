"""Warm-up, stable, decay: a decay that starts from a stable checkpoint of another run."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from minitron_cli.errors import MinitronError
from minitron_cli.training.metrics import read_metrics
from minitron_cli.training.options import Options
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


CHANGES = {
    "a larger batch": ({"batch": 4}, {"phases": ("8:batch=4",), "batch": 8}),
    # One row at a time, as the planned run takes them: sums in another order round otherwise.
    "shorter rows": ({"micro_batch": 1}, {"phases": ("8:seq-len=32,batch=4",), "seq_len": 16, "batch": 8}),
    "phases on both sides": (
        {"phases": ("4:batch=2",)},
        {"phases": ("4:batch=2", "8:batch=4", "10:batch=8"), "batch": 16},
    ),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_branch_with_rows_of_its_own_is_the_run_that_was_planned_with_both(
    case: str, toy: Toy, text: Path, tmp_path: Path
) -> None:
    before, after = CHANGES[case]
    train(options(toy("llama"), text, tmp_path / "stable", steps=40, keep=20, **WSD, **before), say=lambda _: None)
    planned = options(toy("llama"), text, tmp_path / "planned", steps=12, decay_fraction=4 / 12, **WSD, **after)
    train(planned)
    branch = options(
        toy("llama"), text, tmp_path / "branch", steps=12, branch_from=str(tmp_path / "stable/run/step-0000008"),
        **WSD, **after,
    )  # fmt: skip
    assert train(branch).progress.tokens == train(planned).progress.tokens
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("planned", "branch"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_branch_may_weigh_its_data_otherwise(toy: Toy, text: Path, tmp_path: Path) -> None:
    """A decay on more of the better data; what was read until then stands in a phase."""
    second = write_text(tmp_path / "second.jsonl", seed=4)

    def line(name: str, weights: tuple[float, float], **more: Any) -> Options:
        plain = options(toy("llama"), text, tmp_path / name, **WSD, **more)
        return replace(plain, data=tuple(f"{file}:{weight}" for file, weight in zip((text, second), weights)))

    origin = str(tmp_path / "stable/run/step-0000008")
    own = {"steps": 12, "phases": ("8:0.75,0.25",)}
    train(line("stable", (0.75, 0.25), steps=40, keep=20))
    train(line("planned", (0.5, 0.5), decay_fraction=4 / 12, **own))
    train(line("branch", (0.5, 0.5), branch_from=origin, **own))
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("planned", "branch"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    with pytest.raises(MinitronError, match="other data there than here"):
        train(line("b", (0.5, 0.5), branch_from=origin, steps=12))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {"phases": ("8:seq-len=32",), "seq_len": 64}),  # blocks of 64 are permuted, not of 32
        ({"phases": ("6:seq-len=16",)}, {"phases": ("6:seq-len=16", "7:batch=8"), "batch": 2}),
        ({"phases": ("10:seq-len=16",)}, {"phases": ("8:seq-len=16",)}),  # short rows are permuted up to their end
    ],
)
def test_a_branch_whose_plan_reads_other_rows_until_then_is_refused(
    before: dict, after: dict, toy: Toy, text: Path, tmp_path: Path
) -> None:
    stable = options(toy("llama"), text, tmp_path / "stable", steps=12, keep=9, decay_fraction=0.1, **WSD, **before)
    train(stable)
    branch = options(
        toy("llama"), text, tmp_path / "b", steps=12, branch_from=str(tmp_path / "stable/run/step-0000008"),
        **WSD, **after,
    )  # fmt: skip
    with pytest.raises(MinitronError, match=r"belongs to a run of other options: .*--(phase|seq-len)") as refused:
        train(branch)
    assert "--phase 8:" in (refused.value.hint or "")


def test_a_checkpoint_inside_a_decay_is_refused(toy: Toy, text: Path, tmp_path: Path) -> None:
    train(options(toy("llama"), text, tmp_path / "run", steps=10, keep=9, decay_fraction=0.5, **WSD))
    origin = str(tmp_path / "run/run/step-0000008")
    with pytest.raises(MinitronError, match="was falling at step 8"):
        train(options(toy("llama"), text, tmp_path / "b", steps=12, branch_from=origin, **WSD))
    with pytest.raises(MinitronError, match="is not a checkpoint"):
        train(options(toy("llama"), text, tmp_path / "b", steps=12, branch_from=str(tmp_path / "run"), **WSD))
