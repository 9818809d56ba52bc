"""The main job with its costs turned down: made twice it is the same to the byte, and so it is after ten kills."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from minitron_cli.checkpoint.provenance import file_digest

CHEAP = [
    *(
        f"{step}.{option}"
        for step in ("large", "middle", "small")
        for option in ("steps=8", "warmup=2", "save-every=2")
    ),
    *(f"scores-{step}.samples=64" for step in ("large", "middle")),
]
LINE = [sys.executable, "-m", "minitron_cli", "run", "tiny", "--until", "small"]
MODELS = ("large", "middle-pruned", "middle", "small-pruned", "small")


def _start(directory: Path) -> subprocess.Popen[bytes]:
    settings = [word for setting in CHEAP for word in ("--set", setting)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with directory.with_name("log").open("ab") as log:  # not a pipe: nobody reads it while the run goes on
        return subprocess.Popen(
            [*LINE, *settings, "-o", str(directory)], env=environment, stdout=log, stderr=log, start_new_session=True
        )


def _log(directory: Path) -> str:
    return directory.with_name("log").read_text()[-2000:]


def _models(directory: Path) -> dict[str, str]:
    return {name: file_digest(directory / name / "model.safetensors") for name in MODELS}


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """A run without interruption, and how long it took in seconds."""
    directory = tmp_path_factory.mktemp("straight") / "run"
    begin = time.monotonic()
    process = _start(directory)
    assert process.wait() == 0, _log(directory)
    return directory, time.monotonic() - begin


@pytest.mark.slow
def test_made_twice_it_is_the_same_to_the_byte(straight: tuple[Path, float], tmp_path: Path) -> None:
    process = _start(tmp_path / "again")
    assert process.wait() == 0
    assert _models(tmp_path / "again") == _models(straight[0])


@pytest.mark.slow
def test_killed_at_ten_random_moments_it_ends_the_same(straight: tuple[Path, float], tmp_path: Path) -> None:
    moments = random.Random(0)
    kills = 0
    for attempt in range(40):
        process = _start(tmp_path / "killed")
        try:
            process.wait(moments.uniform(0.02, 0.15) * straight[1] if kills < 10 else None)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
            continue
        assert process.returncode == 0, f"attempt {attempt}: {_log(tmp_path / 'killed')}"
        break
    assert kills >= 3, "the run was over before it could be killed"
    assert _models(tmp_path / "killed") == _models(straight[0])


@pytest.mark.slow
def test_one_changed_option_reruns_exactly_what_depends_on_it(straight: tuple[Path, float]) -> None:
    directory = straight[0]
    settings = [word for setting in [*CHEAP, "small-pruned.ffn=160"] for word in ("--set", setting)]
    done = subprocess.run(
        [*LINE, *settings, "-o", str(directory), "--dry-run", "--json"], capture_output=True, text=True, check=True
    )
    actions = {step["step"]: step["action"] for step in json.loads(done.stdout)["steps"]}
    assert {name for name, action in actions.items() if action != "done"} == {"small-pruned", "small"}
