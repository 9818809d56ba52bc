"""Runs whose steps are copied elsewhere: another machine goes on from there with the same bits, whatever fails."""

import json
import multiprocessing
import os
import re
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.registry import known_implementations

from minitron_cli import api
from minitron_cli.__main__ import run
from minitron_cli.chain.shear import trim
from minitron_cli.checkpoint.provenance import changed_files
from minitron_cli.checkpoint.seal import DIGEST, sealed
from minitron_cli.errors import MinitronError
from minitron_cli.training import patience, state
from minitron_cli.training.options import Options
from minitron_cli.training.run import rehearse, train
from minitron_cli.training.step_files import STATE, shard_name
from tests.training.runs import options, signal_after, write_text
from tests.training.storage import KillsItself, NowAndThen, Troubled, clear, content, content_at, untroubled
from tests.training.test_distributed import start, wait_for_steps
from tests.training.test_run import assert_bitwise, untimed_metrics, weights

Toy = Callable[..., Path]
Line = Callable[..., Options]


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(patience, "FIRST_WAIT", 0.001)
    yield
    Troubled.trouble = untroubled


@pytest.fixture(scope="module")
def whole(toy: Toy, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody disturbed."""
    output = tmp_path_factory.mktemp("whole") / "out"
    train(options(toy("llama"), text, output))
    return output


@pytest.fixture
def line(toy: Toy, text: Path, tmp_path: Path) -> Line:
    def get(mirror: str | None = None, **changes: Any) -> Options:
        return options(toy("llama"), text, tmp_path / "out", mirror=mirror or f"trouble://{tmp_path}/mirror", **changes)

    return get


def assert_same_end(whole: Path, output: Path) -> None:
    """Weights, moments and metrics to the bit."""
    assert_bitwise(weights(whole), weights(output))
    last = [dict(state.load_weights(p / "run" / "step-0000012", "")) for p in (whole, output)]
    assert_bitwise(*last)
    assert untimed_metrics(whole) == untimed_metrics(output)


def assert_copied(there: dict[str, bytes], here: dict[str, bytes], steps: int = 2) -> None:
    """All but steps, and the last of those; of the earlier ones the thread may have skipped some."""
    last = max(name for name in here if name.startswith("run/step-"))
    last = last.rpartition("/")[0]
    wanted, found = (
        {name: data for name, data in files.items() if last in name or not name.startswith("run/step-")}
        for files in (here, there)
    )
    assert found == wanted
    whole = {name.rpartition("/")[0] for name in there if name.endswith(STATE)}
    assert whole == {name.rpartition("/")[0] for name in there if name.startswith("run/step-")}
    assert len(whole) <= steps


@pytest.fixture
def in_step(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The run waits for the copy of every step."""
    write = state.write

    def and_wait(*arguments: Any) -> Path:
        final, deadline = write(*arguments), time.monotonic() + 60
        while not (tmp_path / "mirror" / "run" / final.name / STATE).exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return final

    monkeypatch.setattr(state, "write", and_wait)


def steps_of(run: Path) -> list[str]:
    return sorted(p.name for p in run.iterdir() if p.name.startswith("step-"))


@pytest.mark.parametrize("protocol", ["memory", "file"])
def test_an_empty_machine_goes_on_where_the_other_was(protocol: str, line: Line, whole: Path, tmp_path: Path) -> None:
    url = f"memory://{uuid.uuid4()}/run" if protocol == "memory" else f"file://{tmp_path}/mirror"
    output = tmp_path / "out"
    for stop, before in ((5, None), (9, 5)):
        said: list[str] = []
        with signal_after(stop):
            assert train(line(url), say=said.append).stopped_by
        assert (f"continuing from step {before} of 12" in said) is bool(before)
        assert_copied(content_at(url), content(output))
        clear(output)
    train(line(url))
    assert_same_end(whole, output)
    finished = content(output)
    mirrored = content_at(url)
    assert_copied(mirrored, finished)
    clear(output)
    assert train(line(url)).was_done
    assert content(output).keys() == {name for name in finished if not name.startswith("run/step-")}
    assert all(data == finished[name] for name, data in content(output).items())
    assert content_at(url) == mirrored


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_kills_in_the_middle_of_a_copy_change_nothing(line: Line, whole: Path, tmp_path: Path) -> None:
    """Kill -9 in the first copy, the second, ...: what counts as whole is, and the end is that of a run undisturbed."""
    mirror, output = tmp_path / "mirror", tmp_path / "out"

    def doomed(at: int) -> None:
        Troubled.trouble = KillsItself(at)
        train(line())

    found = set()
    for at in (1, 2, 3, 4, 7, 8, 11, 12, 14):
        process = multiprocessing.get_context("fork").Process(target=doomed, args=(at,))
        process.start()
        process.join(120)
        assert process.exitcode in (-signal.SIGKILL, 0)
        for step in mirror.glob("run/step-*"):
            if (step / STATE).exists() and b"{{" not in (step / STATE).read_bytes():
                listed = json.loads((step / STATE).read_bytes())
                assert sealed(listed)[DIGEST] == listed[DIGEST]
                assert changed_files(step, listed["files"]) == []
                found.add(step.name)
        if output.exists():
            clear(output)
    assert "step-0000004" in found
    train(line())
    assert_bitwise(weights(whole), weights(output))
    assert untimed_metrics(whole) == untimed_metrics(output)


def test_what_fails_now_and_then_is_tried_again(line: Line, whole: Path, tmp_path: Path) -> None:
    Troubled.trouble = trouble = NowAndThen(4)
    said: list[str] = []
    with signal_after(6):
        train(line(), say=said.append)
    clear(tmp_path / "out")
    train(line(), say=said.append)
    assert trouble.count > 80
    assert not [text for text in said if "warning" in text]
    assert_same_end(whole, tmp_path / "out")
    assert_copied(content(tmp_path / "mirror"), content(tmp_path / "out"))


def refusing(*parts: str) -> Callable[[str, str], None]:
    """No copy of a path with one of these parts in it succeeds."""

    def refuse(operation: str, path: str) -> None:
        if operation == "put" and any(part in path for part in parts):
            raise PermissionError("Access Denied")

    return refuse


def test_a_step_that_cannot_be_copied_is_said_once_and_the_next_is(line: Line, tmp_path: Path) -> None:
    Troubled.trouble = refusing("step-0000004/", "step-0000008/")
    said: list[str] = []
    original = state.write

    def write_and_wait(*arguments: Any) -> Path:
        """The thread comes to every step."""
        final, before = original(*arguments), len(said)
        while final.name < "step-0000012" and not any(final.name in text for text in said[before:]):
            time.sleep(0.01)
        return final

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(state, "write", write_and_wait)
        train(line(), say=said.append)
    warnings = [text for text in said if "warning" in text]
    assert len(warnings) == 2
    for text, step in zip(warnings, ("step-0000004", "step-0000008")):
        assert f"warning: {step} is not copied, the run goes on: " in text
        assert "cannot be written after 7 tries: Access Denied" in text
    assert steps_of(tmp_path / "mirror" / "run") == ["step-0000012"]


def test_a_run_whose_last_copy_is_not_complete_fails_and_the_same_line_completes_it(
    line: Line, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    asked, out = line(), tmp_path / "out"
    typed = ["train", asked.student, "--data", *asked.data, "-o", str(out), "--mirror", str(asked.mirror)]
    typed += ["--steps", "3", "--batch", "4", "--seq-len", "32", "--device", "cpu"]
    Troubled.trouble = refusing("model.safetensors")
    for _ in range(2):
        assert run(typed) == 1
        error, hint = capfd.readouterr().err.splitlines()[-2:]
        assert error.startswith(f"error: {out} is not copied whole: trouble://")
        assert hint == "hint: type the same line again: it copies what is missing"
        assert (out / "minitron.json").is_file()
        assert not (tmp_path / "mirror" / "minitron.json").exists()
    Troubled.trouble = untroubled
    assert run(typed) == 0
    assert "finished already" in capfd.readouterr().out
    assert_copied(content(tmp_path / "mirror"), content(out))


def test_a_stopped_run_says_that_its_last_step_is_not_there(line: Line) -> None:
    Troubled.trouble = refusing("step-0000005/")
    said: list[str] = []
    with signal_after(5):
        assert train(line(), say=said.append).stopped_by == 143
    assert any("is not copied whole" in text and "step-0000005" in text for text in said)


def test_an_error_of_the_run_leaves_with_the_last_step_copied(line: Line, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patched:
        write_shard = state.write_shard

        def fails(file: Path, tensors: Any) -> str:
            if "step-0000008" in str(file):
                raise OSError(28, "No space left on device")
            return write_shard(file, tensors)

        patched.setattr(state, "write_shard", fails)
        with pytest.raises(MinitronError, match="no space left"):
            train(line())
    assert steps_of(tmp_path / "mirror" / "run") == ["step-0000004"]
    assert content(tmp_path / "mirror" / "run" / "step-0000004") == content(tmp_path / "out" / "run" / "step-0000004")


def test_nothing_is_copied_of_a_run_that_has_saved_nothing(line: Line, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(state, "write_shard", _full_disk)
        with pytest.raises(MinitronError, match="no space left"):
            train(line())
    assert content(tmp_path / "mirror") == {}
    assert train(line(lr=1e-4)).progress.step == 12


def _full_disk(*_: object) -> None:
    raise OSError(28, "No space left on device")


def test_a_step_stays_while_it_is_copied_and_later_ones_wait_for_no_copy(line: Line, tmp_path: Path) -> None:
    """A slow copy of step 2: steps go on, the newest of those saved meanwhile comes next, the disk ends as usual."""
    gate, reached, seen = threading.Event(), threading.Event(), []

    def slow(operation: str, path: str) -> None:
        if operation == "put" and "step-0000002/shard" in path:
            reached.set()
            assert gate.wait(60)

    original = state.write

    def write(*arguments: Any) -> Path:
        final = original(*arguments)
        if final.name == "step-0000002":
            assert reached.wait(60)
        seen.append(steps_of(final.parent))
        if final.name == "step-0000008":
            gate.set()
        return final

    Troubled.trouble = slow
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(state, "write", write)
        train(line(save_every=2, keep=1))
    assert seen[:4] == [
        ["step-0000002"],
        ["step-0000002", "step-0000004"],
        ["step-0000002", "step-0000006"],
        ["step-0000002", "step-0000008"],
    ]
    assert steps_of(tmp_path / "out" / "run") == ["step-0000012"]
    assert_copied(content(tmp_path / "mirror"), content(tmp_path / "out"))


@pytest.mark.usefixtures("in_step")
def test_damage_in_the_mirror_is_found_and_the_step_before_is_taken(line: Line, whole: Path, tmp_path: Path) -> None:
    with signal_after(9):
        train(line())
    clear(tmp_path / "out")
    mirrored = tmp_path / "mirror" / "run"
    assert steps_of(mirrored) == ["step-0000008", "step-0000009"]
    shard = mirrored / "step-0000009" / shard_name(0, 1)
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    said: list[str] = []
    train(line(), say=said.append)
    assert [text for text in said if "warning" in text] == [
        f"warning: trouble://{mirrored}/step-0000009 is damaged: {shard.name} has changed (its sha256 differs)"
    ]
    assert "continuing from step 8 of 12" in said
    assert_same_end(whole, tmp_path / "out")
    assert_copied(content(tmp_path / "mirror"), content(tmp_path / "out"))


@pytest.mark.parametrize("name", ["../../../stolen", "/tmp/stolen"])
def test_a_mirror_names_no_file_outside(name: str, line: Line, tmp_path: Path) -> None:
    with signal_after(5):
        train(line(keep=1))
    clear(tmp_path / "out")
    file = tmp_path / "mirror" / "run" / "step-0000005" / STATE
    altered = json.loads(file.read_text())
    altered["files"][name] = "0" * 64
    file.write_text(json.dumps(sealed(altered)))
    said: list[str] = []
    with pytest.raises(MinitronError, match="holds no step of this run that is whole"):
        train(line(keep=1), say=said.append)
    assert any(text.endswith(f"step-0000005 is damaged: it lists {name}") for text in said)
    assert not (tmp_path / "stolen").exists()


def test_a_finished_student_that_is_damaged_there_is_made_again(line: Line, whole: Path, tmp_path: Path) -> None:
    train(line())
    clear(tmp_path / "out")
    (tmp_path / "mirror" / "config.json").write_text("{}")
    said: list[str] = []
    assert not train(line(), say=said.append).was_done
    assert any("config.json has changed" in text for text in said)
    assert_same_end(whole, tmp_path / "out")
    assert_copied(content(tmp_path / "mirror"), content(tmp_path / "out"))


def test_an_address_that_does_not_answer_does_not_start_a_run_anew(line: Line, tmp_path: Path) -> None:
    with signal_after(5):
        train(line())
    clear(tmp_path / "out")

    def unreachable(operation: str, path: str) -> None:
        if operation == "get" and "shard" in path:
            raise TimeoutError

    Troubled.trouble = unreachable
    with pytest.raises(MinitronError, match=r"shard-\S+ cannot be read after 7 tries: TimeoutError"):
        train(line())
    assert state.checkpoints(tmp_path / "out" / "run") == []
    Troubled.trouble = untroubled
    said: list[str] = []
    train(line(), say=said.append)
    assert "continuing from step 5 of 12" in said


def test_a_mirror_of_something_else_is_refused(line: Line, tmp_path: Path) -> None:
    with signal_after(5):
        train(line())
    before = content(tmp_path / "mirror")
    clear(tmp_path / "out")
    for attempt in (train, lambda asked: rehearse(asked, 1)[1]()):
        with pytest.raises(MinitronError, match=r"a run that was started with different options: --lr 0.001 -> 0"):
            attempt(line(lr=1e-4))
        with pytest.raises(MinitronError, match="holds something, and no run of minitron"):
            attempt(line(f"trouble://{tmp_path}"))
    train(line(lr=1e-4, mirror=f"trouble://{tmp_path}/other"))
    with pytest.raises(MinitronError, match="holds a run, which --overwrite leaves alone"):
        train(line(), overwrite=True)
    assert content(tmp_path / "mirror") == before


def test_a_replacement_is_mirrored_while_it_is_made(line: Line, whole: Path, tmp_path: Path) -> None:
    train(replace(line(), mirror=None, steps=2))
    with signal_after(5):
        assert train(line(), overwrite=True).output == tmp_path / "out.new"
    assert_copied(content(tmp_path / "mirror"), content(tmp_path / "out.new"))
    said: list[str] = []
    train(line(), overwrite=True, say=said.append)
    assert "continuing from step 5 of 12" in said
    assert_same_end(whole, tmp_path / "out")
    assert_copied(content(tmp_path / "mirror"), content(tmp_path / "out"))


WRONG = {
    "bucket/run": "is not an address",
    "nothing://bucket/run": "Protocol not known: nothing",
    "absent://bucket/run": r"absent:// needs a package that is not installed \(Install absentfs",
    "s3://key:secret@bucket/run": "has a password or a query in it",
    "s3://bucket/run?versionId=1": "has a password or a query in it",
    "file://{tmp}/out/mirror": "overlap",
    "file://{tmp}": "overlap",
}


@pytest.mark.parametrize("url", WRONG)
def test_an_address_that_will_not_do_is_refused_at_once(
    url: str, line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = {"class": "absentfs.core.AbsentFileSystem", "err": "Install absentfs to access Absent"}
    monkeypatch.setitem(known_implementations, "absent", entry)
    for attempt in (train, lambda asked: rehearse(asked, 1)):
        with pytest.raises(MinitronError, match=WRONG[url]) as caught:
            attempt(line(url.format(tmp=tmp_path)))
        assert "secret" not in caught.value.message
    if url.startswith("absent"):
        assert caught.value.hint == "pip install absentfs"
    assert not (tmp_path / "out").exists()


def test_a_dry_run_tries_the_address_and_says_what_a_step_takes(line: Line, tmp_path: Path) -> None:
    facts, check = rehearse(line(), 1)
    check()
    assert content(tmp_path / "mirror") == {}
    Troubled.trouble = _read_only
    with pytest.raises(MinitronError, match="cannot be written after 3 tries: Read-only") as caught:
        check()
    assert "credentials" in caught.value.hint
    Troubled.trouble = untroubled
    train(line())
    size = (tmp_path / "mirror" / "run" / "step-0000012" / shard_name(0, 1)).stat().st_size
    assert facts["mirror"]["a step"] <= size < 1.05 * facts["mirror"]["a step"] + 20_000
    without = rehearse(replace(line(), mirror=None), 1)[0]
    assert facts["disk"] - without["disk"] == 12 * facts["student parameters"]


def _read_only(operation: str, path: str) -> None:
    if operation == "pipe":
        raise OSError(30, "Read-only file system")


def test_students_exported_on_the_way_and_masked_ones_are_there(line: Line, toy: Toy, tmp_path: Path) -> None:
    with signal_after(6):
        train(line(export_at=("25%",)))
    clear(tmp_path / "out")
    train(line(export_at=("25%",)))
    assert (tmp_path / "out" / "run" / "exported" / "step-3" / "model.safetensors").is_file()
    assert_copied(content(tmp_path / "mirror"), content(tmp_path / "out"))
    clear(tmp_path / "out")
    masked = line(verb="shear", sizes=("ffn=56",), max_gap=1.0, mirror=f"trouble://{tmp_path}/masked")
    train(masked, trim=trim)
    assert_copied(content(tmp_path / "masked"), content(tmp_path / "out"))
    finished = content(tmp_path / "out")
    clear(tmp_path / "out")
    assert train(masked, trim=trim).was_done
    assert finished["run/masked/model.safetensors"] == content(tmp_path / "out")["run/masked/model.safetensors"]


def test_from_python(toy: Toy, text: Path, tmp_path: Path) -> None:
    url = f"memory://{uuid.uuid4()}"
    given = {"data": text, "steps": 2, "batch": 2, "seq_len": 32, "device": "cpu", "mirror": url}
    api.train(toy("llama"), output=tmp_path / "out", **given)
    assert_copied(content_at(url), content(tmp_path / "out"))


@pytest.mark.slow
def test_two_processes_go_on_elsewhere(toy: Toy, tmp_path: Path) -> None:
    """Interrupted, and on a disk without what they had: the bits of an uninterrupted run of two."""
    student, text = toy("llama"), write_text(tmp_path / "text.jsonl")

    def typed(output: str, *more: str) -> list[str]:
        fixed = ["--batch", "4", "--seq-len", "32", "--steps", "24", "--save-every", "3", "--lr", "1e-3"]
        where = ["--data", str(text), "-o", str(tmp_path / output), "--device", "cpu", "--nproc", "2"]
        return ["train", str(student), *where, *fixed, *more]

    mirror = ("--mirror", f"file://{tmp_path}/mirror")
    process = start(typed("out", *mirror))
    wait_for_steps(tmp_path / "out", 7, process)
    process.send_signal(signal.SIGTERM)
    stderr = process.communicate(timeout=120)[1]
    assert process.returncode == 143, stderr[-3000:]
    assert_copied(content(tmp_path / "mirror"), content(tmp_path / "out"))
    stopped = state.checkpoints(tmp_path / "out" / "run")[-1].name
    clear(tmp_path / "out")
    for output, more in (("out", mirror), ("whole", ())):
        process = start(typed(output, *more))
        stderr = process.communicate(timeout=300)[1]
        assert process.returncode == 0, stderr[-3000:]
        assert bool(re.search(rf"continuing from step {int(stopped[5:])} of 24", stderr)) is (output == "out")
    assert_bitwise(weights(tmp_path / "whole"), weights(tmp_path / "out"))
    assert untimed_metrics(tmp_path / "whole") == untimed_metrics(tmp_path / "out")
    assert_copied(content(tmp_path / "mirror"), content(tmp_path / "out"))


def test_every_protocol_is_fsspecs_own() -> None:
    """The addresses that the README names are known to the fsspec that is installed."""
    assert {"s3", "gs", "file"} <= {*fsspec.available_protocols()}
