"""The README's commands run, on the toy world, with the sizes that cost time turned down."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from minitron_cli.__main__ import run
from minitron_cli.api import search

README = Path(__file__).resolve().parents[1] / "README.md"
# What a test turns down: the chain stays the same, its numbers do not.
CHEAPER = {"--steps": "2", "--batch": "4", "--samples": "16", "--speedup": "0.01"}


def _block(name: str, language: str = "sh") -> list[str]:
    """The lines of the block marked `<!-- test: NAME -->`."""
    found = re.search(rf"<!-- test: {name} -->\n```{language}\n(.*?)```", README.read_text(), re.DOTALL)
    assert found, f"the README has no block {name!r}"
    return found.group(1).strip().splitlines()


def _cheaper(line: str) -> list[str]:
    words = shlex.split(line)
    return [CHEAPER.get(previous, word) for previous, word in zip(["", *words], words)]


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory in which the README's chain was typed."""
    directory = tmp_path_factory.mktemp("readme")
    before = Path.cwd()
    os.chdir(directory)
    try:
        for line in _block("chain"):
            assert run(_cheaper(line)[1:]) == 0, line
    finally:
        os.chdir(before)
    return directory


def test_the_chain_runs_as_typed(chain: Path) -> None:
    for name in ("large", "middle-pruned", "middle"):
        assert (chain / name / "minitron.json").is_file()
    assert (chain / "figures.json").is_file()


def test_starting_closer(chain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(chain)
    for line in _block("closer"):
        assert run(_cheaper(line)[1:]) == 0, line
    assert run(["verify", "closer", "--source", "large", "--no-load"]) == 0


def test_the_python_block_runs_as_in_a_notebook(
    chain: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Off the main thread, and with a command line that is not ours."""
    monkeypatch.chdir(chain)
    monkeypatch.setattr(sys, "argv", ["ipykernel_launcher.py", "-f", "kernel.json"])
    code = "\n".join(_block("api", "python"))
    for words in ("samples=1024", "steps=200", "batch=16"):
        assert words in code
        name, _, _ = words.partition("=")
        code = code.replace(words, f"{name}={CHEAPER[f'--{name}']}")
    with ThreadPoolExecutor(1) as pool:
        names: dict[str, Any] = {}
        pool.submit(exec, code, names).result()
        # What search ranks is in the README's commands; here are its keyword arguments.
        found = pool.submit(
            search, "large", params="600K", scores="api.safetensors", data=names["train"], eval_data=names["valid"],
            measure=2, eval_windows=4, output="api-search",
        ).result()  # fmt: skip
    losses = json.loads((chain / "figures.json").read_text())["models"]
    assert names["found"].results["models"][0]["loss"] == pytest.approx(losses[0]["loss"], rel=1e-6)
    assert names["run"].progress.step == 2
    assert (chain / "api" / "minitron.json").is_file()
    assert str(names["cut"].facts.parameters[1]) in capsys.readouterr().out
    assert found.facts == json.loads((chain / "api-search" / "search.json").read_text())


@pytest.mark.parametrize("line", _block("search"))
def test_a_shape_is_searched_for(
    chain: Path, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(chain)
    listed = "--list" in line
    assert run([*_cheaper(line)[1:], *([] if listed else ["--measure", "2", "--eval-windows", "4"])]) == 0
    assert ("-l5" if listed else "would write" if "--dry-run" in line else "next: minitron prune") in (
        capsys.readouterr().out
    )


@pytest.mark.parametrize("line", _block("recipes"))
def test_every_published_recipe_can_be_looked_at(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(shlex.split(line)[1:]) == 0
    assert "GPU hours" in capsys.readouterr().out


def test_the_shell_pipeline_composes(chain: Path) -> None:
    if shutil.which("jq") is None:
        pytest.skip("jq is not installed")
    script = "set -euo pipefail\n" + "\n".join(_block("pipeline"))
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", script], cwd=chain, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.strip().splitlines()[-1]) > 0


def test_files_that_contributors_are_sent_to_exist() -> None:
    """Paths in backticks: of the package, or from the root of the repository; a name without suffix is a module."""
    root = README.parent
    text = (root / ".github" / "CONTRIBUTING.md").read_text()
    named = set(re.findall(r"`((?:\w+/)+\w*(?:\.py)?/?)`", text)) - {"families/NAME.py"}
    assert len(named) > 20
    places = [[root / name, root / "minitron_cli" / name, root / "minitron_cli" / f"{name}.py"] for name in named]
    missing = [name for name, found in zip(named, places) if not any(place.exists() for place in found)]
    assert not missing
