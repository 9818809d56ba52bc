"""Standard streams that are full, closed or narrow, a directory that is gone, a signal in the middle: no traceback."""

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from minitron_cli.cli.common import command_line
from tests.cli.conftest import Result

Toy = Callable[..., Path]
Minitron = Callable[..., Result]
SHELL = f"{shlex.quote(sys.executable)} -m minitron_cli"


def shell(line: str, place: Path, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["/bin/sh", "-c", line], cwd=place, capture_output=True, env={**os.environ, **environment}, check=False
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_a_stdout_that_is_full(toy: Toy, tmp_path: Path) -> None:
    done = shell(f"{SHELL} inspect {toy('llama')} > /dev/full", tmp_path)
    assert done.returncode == 1
    assert done.stderr.decode().splitlines() == [
        "error: the output cannot be written: No space left on device", "hint: where does stdout go?",
    ]  # fmt: skip


def test_closed_streams(toy: Toy, tmp_path: Path) -> None:
    done = shell(f"{SHELL} inspect {toy('llama')} <&- >&- 2>&-", tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_an_encoding_without_the_letters_of_a_path(toy: Toy, tmp_path: Path) -> None:
    (tmp_path / "mödel").symlink_to(toy("llama"))
    done = shell(f"{SHELL} inspect mödel", tmp_path, PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert b"m\\xf6del" in done.stdout


def test_a_working_directory_that_is_gone(toy: Toy, tmp_path: Path) -> None:
    done = shell(f"mkdir gone; cd gone; rmdir ../gone; {SHELL} inspect {toy('llama')}", tmp_path)
    assert done.returncode == 1
    assert b"error: the working directory is gone" in done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_no_temporary(number: signal.Signals, toy: Toy, tmp_path: Path) -> None:
    program = (
        "import os, sys; import minitron_cli.prune.write as module; from minitron_cli.__main__ import main;"
        f"module.carry_files = lambda *_: os.kill(os.getpid(), {int(number)}); main(sys.argv[1:])"
    )
    line = [sys.executable, "-c", program, "prune", str(toy("llama")), "--drop-layers", "0", "-o", "out"]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 128 + number
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("verb", ["prune", "importance"])
def test_a_limit_on_the_size_of_files(verb: str, toy: Toy, tmp_path: Path) -> None:
    more = {"prune": "--drop-layers 0", "importance": "--metric magnitude"}[verb]
    done = shell(f"ulimit -f 2; {SHELL} {verb} {toy('llama')} {more} -o out.safetensors", tmp_path)
    assert done.returncode == 1
    assert b"a file would exceed the size that the system allows" in done.stderr
    assert b"Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_lines_to_type_are_quoted() -> None:
    words = ["eval", Path("my model"), "--data", "it's.jsonl"]
    assert shlex.split(command_line(*words)) == ["minitron", *map(str, words)]


def test_inspect_of_a_config_alone(toy: Toy, tmp_path: Path, minitron: Minitron) -> None:
    import json

    (tmp_path / "config.json").write_bytes((toy("llama") / "config.json").read_bytes())
    whole = json.loads(minitron("inspect", toy("llama"), "--json").out)
    alone = json.loads(minitron("inspect", tmp_path, "--json").out)
    assert (alone["weights"], whole["weights"]) == (False, True)
    differ = ("model", "weights", "dtypes", "tensors")
    assert {**alone, **{key: whole[key] for key in differ}} == whole
    assert "none are here" in minitron("inspect", tmp_path).out
