"""What is in an output directory is never lost: a new line replaces it only once its own result is complete."""

import math
import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import pytest

from minitron_cli.checkpoint.atomic import MANIFEST
from minitron_cli.errors import MinitronError
from minitron_cli.training import rundir, state
from minitron_cli.training.run import train
from tests.training.runs import options, signal_after

Toy = Callable[..., Path]


@pytest.fixture
def out(toy: Toy, text: Path, tmp_path: Path) -> Path:
    """A finished run of two steps."""
    train(options(toy("llama"), text, tmp_path / "out", steps=2))
    return tmp_path / "out"


def content(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def full_disk(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")


FAILING: dict[str, dict] = {
    "missing eval data": {"eval_data": ("no-such-file.jsonl",)},
    "a rate that is not a number": {"lr": math.nan},
    "weights that overflow": {"lr": 1e18, "warmup": 0, "grad_clip": math.inf, "weight_decay": 0.0},
}


@pytest.mark.parametrize("name", FAILING)
def test_a_line_that_fails_leaves_the_old_result(name: str, toy: Toy, text: Path, out: Path) -> None:
    before = content(out)
    with pytest.raises(MinitronError):
        train(options(toy("llama"), text, out, **FAILING[name]), overwrite=True)
    assert content(out) == before


@pytest.mark.parametrize("when", ["in the first checkpoint", "in the export", "in the metrics"])
def test_a_full_disk_leaves_the_old_result(when: str, toy: Toy, text: Path, out: Path) -> None:
    before = content(out)
    place = {
        "in the first checkpoint": "minitron_cli.training.state.write_shard",
        "in the export": "minitron_cli.training.export.write_manifest",
        "in the metrics": "minitron_cli.training.metrics.MetricsLog.write",
    }
    with patch(place[when], full_disk), pytest.raises(MinitronError, match="no space left"):
        train(options(toy("llama"), text, out, steps=3), overwrite=True)
    assert content(out) == before
    assert out.with_name("out.new").exists() == (when == "in the export"), "only what can be continued is kept"
    assert train(options(toy("llama"), text, out, steps=3), overwrite=True).progress.step == 3
    assert not out.with_name("out.new").exists()


def test_a_stopped_line_leaves_the_old_result_and_goes_on(toy: Toy, text: Path, out: Path) -> None:
    before = content(out)
    with signal_after(5):
        outcome = train(options(toy("llama"), text, out), overwrite=True)
    assert (outcome.output, outcome.stopped_by) == (out.with_name("out.new"), 143)
    assert content(out) == before
    said: list[str] = []
    outcome = train(options(toy("llama"), text, out), overwrite=True, say=said.append)
    assert "continuing from step 5 of 12" in said
    assert (outcome.output, outcome.progress.step) == (out, 12)
    assert [p.name for p in out.parent.iterdir() if p.name.startswith((".", "out"))] == ["out"]


def test_an_unfinished_replacement_of_other_options_is_discarded(toy: Toy, text: Path, out: Path) -> None:
    with signal_after(5):
        train(options(toy("llama"), text, out), overwrite=True)
    said: list[str] = []
    assert train(options(toy("llama"), text, out, steps=3), overwrite=True, say=said.append).progress.step == 3
    (discarded,) = (line for line in said if "out.new is discarded" in line)
    assert "--steps 12 -> 3" in discarded


def test_a_replacement_that_another_process_makes_is_not_discarded(toy: Toy, text: Path, out: Path) -> None:
    with signal_after(5):
        train(options(toy("llama"), text, out), overwrite=True)
    place = out.with_name("out.new")
    before = content(place)
    with rundir.locked(place), pytest.raises(MinitronError, match="another process is training"):
        train(options(toy("llama"), text, out, steps=3), overwrite=True)
    assert content(place) == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_killed_line_leaves_the_old_result_and_goes_on(toy: Toy, text: Path, out: Path) -> None:
    before, line = content(out), options(toy("llama"), text, out, steps=400, save_every=1)
    process = multiprocessing.get_context("fork").Process(target=train, args=(line,), kwargs={"overwrite": True})
    process.start()
    while not state.checkpoints(out.with_name("out.new") / "run"):
        time.sleep(0.02)
    process.kill()
    process.join()
    assert content(out) == before
    said: list[str] = []
    with signal_after(state.read_progress(state.checkpoints(out.with_name("out.new") / "run")[-1]).step + 1):
        train(line, overwrite=True, say=said.append)
    assert any(s.startswith("continuing from step ") for s in said)
    assert content(out) == before


def test_a_kill_before_the_new_result_takes_its_place(toy: Toy, text: Path, out: Path) -> None:
    with patch.object(rundir, "publish", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        train(options(toy("llama"), text, out, steps=3), overwrite=True)
    assert state.checkpoints(out / "run")[-1].name == "step-0000002"
    assert train(options(toy("llama"), text, out, steps=3), overwrite=True).was_done
    assert state.checkpoints(out / "run")[-1].name == "step-0000003"


def test_a_symbolic_link_is_written_through(toy: Toy, text: Path, out: Path) -> None:
    link = out.with_name("link")
    link.symlink_to(out)
    train(options(toy("llama"), text, link, steps=3), overwrite=True)
    assert link.is_symlink()
    assert link.resolve() == out.resolve()
    assert state.checkpoints(out / "run")[-1].name == "step-0000003"
    assert sorted(p.name for p in out.parent.iterdir() if "out" in p.name or "link" in p.name) == ["link", "out"]


HARM: dict[str, Callable[[Path], object]] = {
    "model.safetensors has changed": lambda p: os.truncate(p / "model.safetensors", 1000),
    "model.safetensors is missing": lambda p: (p / "model.safetensors").unlink(),
    "config.json is missing": lambda p: (p / "config.json").unlink(),
    "tokenizer.json has changed": lambda p: (p / "tokenizer.json").write_text("{}"),
}


@pytest.mark.parametrize("problem", HARM)
def test_a_finished_run_is_good_only_while_its_files_are(problem: str, toy: Toy, text: Path, out: Path) -> None:
    before = content(out)
    HARM[problem](out)
    said: list[str] = []
    assert not train(options(toy("llama"), text, out, steps=2), say=said.append).was_done
    assert any("is exported again" in line and problem in line for line in said)
    assert content(out) == before
    assert train(options(toy("llama"), text, out, steps=2)).was_done


def test_a_damaged_result_without_checkpoints_is_not_trained_anew_in_silence(toy: Toy, text: Path, out: Path) -> None:
    HARM["model.safetensors is missing"](out)
    for step in state.checkpoints(out / "run"):
        step.rename(out.with_name(step.name))
    with pytest.raises(MinitronError, match=r"model\.safetensors is missing.*no checkpoint"):
        train(options(toy("llama"), text, out, steps=2))


def test_two_processes_do_not_train_in_one_directory(toy: Toy, text: Path, tmp_path: Path) -> None:
    line = options(toy("llama"), text, tmp_path / "out", steps=2)
    train(line)
    (tmp_path / "out" / MANIFEST).unlink()
    with rundir.locked(tmp_path / "out"), pytest.raises(MinitronError, match="another process is training in"):
        train(line)


def test_a_process_that_comes_second_leaves_the_first_ones_run_alone(toy: Toy, text: Path, tmp_path: Path) -> None:
    """Also where both began before either had written anything."""
    with rundir.locked(tmp_path / "out"):
        (tmp_path / "out" / "run" / "metrics.jsonl").write_text("")
        with pytest.raises(MinitronError, match="another process is training in"):
            train(options(toy("llama"), text, tmp_path / "out", steps=2))
        assert [p.name for p in (tmp_path / "out" / "run").iterdir()] == ["metrics.jsonl"]


def test_the_place_of_the_new_run_may_be_taken(toy: Toy, text: Path, out: Path) -> None:
    """A directory of that name that is not ours is left alone."""
    out.with_name("out.new").mkdir()
    (out.with_name("out.new") / "thesis.tex").write_text("precious")
    with pytest.raises(MinitronError, match=r"out\.new, where the run would be made"):
        train(options(toy("llama"), text, out, steps=3), overwrite=True)
    assert (out.with_name("out.new") / "thesis.tex").read_text() == "precious"


def test_the_place_of_the_new_run_may_be_a_link_to_nowhere(toy: Toy, text: Path, out: Path) -> None:
    out.with_name("out.new").symlink_to("nowhere")
    with pytest.raises(MinitronError, match=r"out\.new, where the run would be made"):
        train(options(toy("llama"), text, out, steps=3), overwrite=True)
    assert out.with_name("out.new").is_symlink()
