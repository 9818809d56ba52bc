"""What users get wrong: each is an `error:` line and a `hint:` line, exit 1, and nothing is left behind."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from minitron_cli.checkpoint.scores_file import write_scores
from minitron_cli.spec.scores import Scores
from tests.cli.conftest import Result
from tests.cli.test_prune import scores_for
from tests.prune.cutting import random_scores

Toy = Callable[..., Path]
Minitron = Callable[..., Result]


def spoiled_scores(place: Path, model: Path) -> None:
    from minitron_cli.checkpoint.reader import open_checkpoint

    values = dict(random_scores(open_checkpoint(model).shape).values)
    write_scores(place / "nameless.safetensors", Scores(values))
    write_scores(place / "ffn_only.safetensors", Scores({"ffn": values["ffn"]}))
    write_scores(place / "narrow.safetensors", Scores({"hidden": values["hidden"][:-1]}))
    values["hidden"] = np.where(np.arange(48) == 7, np.nan, values["hidden"])
    write_scores(place / "nan.safetensors", Scores(values))


@pytest.fixture
def place(toy: Toy, tmp_path: Path) -> Path:
    """A directory of things to get wrong; {out} stands free in it."""
    model = Path(shutil.copytree(toy("llama"), tmp_path / "model"))
    scores_for(model, tmp_path / "scores.safetensors")
    spoiled_scores(tmp_path, model)
    (tmp_path / "text.safetensors").write_text("these are not scores")
    (tmp_path / "file").write_text("a file")
    (tmp_path / "empty").mkdir()
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("mine")
    shutil.copytree(model, tmp_path / "ours")
    (tmp_path / "ours" / "minitron.json").write_text("{}")
    config = json.loads((model / "config.json").read_text())
    for name, change in (("bert", {"model_type": "bert"}), ("lists", {"layer_types": ["full_attention"]})):
        shutil.copytree(model, tmp_path / name)
        (tmp_path / name / "config.json").write_text(json.dumps({**config, **change}))
    return tmp_path


# (arguments; -o {out} is added, the rest of the line, and the message). {x} is a path inside `place`.
TABLE = [
    ("--hidden 36", "`minitron prune` needs a model"),
    ("{nowhere} --hidden 36", "nowhere is not a model directory"),
    ("{file} --hidden 36", "file is not a model directory"),
    ("{empty} --hidden 36", "empty is not a checkpoint: it has no config.json"),
    ("{bert} --hidden 36", "unknown model_type 'bert'"),
    ("{model}", "no target size is given"),
    ("{model} --hidden 36", "no scores for hidden: pruning needs to know what matters"),
    ("{model} --hidden 36 --scores {nowhere}", "there is no scores file at"),
    ("{model} --hidden 36 --scores {text.safetensors}", "is not a scores file of `minitron importance`"),
    ("{model} --hidden 36 --scores {model}/model.safetensors", "is not a scores file of `minitron importance`"),
    ("{model} --hidden 36 --scores {nameless.safetensors}", "the scores were measured on another model"),
    ("{model} --hidden 36 --scores {ffn_only.safetensors}", "the scores hold no 'hidden' axis (they hold ffn)"),
    ("{model} --hidden 36 --scores {narrow.safetensors}", "have shape (47,), this model needs (48,)"),
    ("{model} --hidden 36 --scores {nan.safetensors} --force", "not finite, first at index [7]"),
    ("{model} --hidden 64 --scores {scores.safetensors}", "--hidden 64 is larger than the source's 48"),
    ("{model} --hidden 64 --ffn 99 --scores {scores.safetensors}", "--ffn 99 is larger than the source's 88"),
    ("{model} --heads 3 --scores {scores.safetensors}", "--heads 3 does not divide by the 2 KV groups"),
    ("{model} --heads 5 --scores {scores.safetensors}", "allowed: 2, 4, 6"),
    ("{model} --kv-heads 1 --scores {scores.safetensors}", "--kv-heads 1 drops the 3 query heads of each group"),
    ("{model} --experts 2 --scores {scores.safetensors}", "llama models have no --experts"),
    ("{model} --hidden 37 --scores {scores.safetensors}", "transformers rejects the target's config"),
    ("{model} --hidden 37 --dry-run", "transformers rejects the target's config"),
    ("{model} --layers 2 --dry-run -o {ours}", "ours exists already"),
    ("{model} --layers 2 --dry-run --data {nowhere}.txt", "nowhere.txt"),
    ("{model} --hidden 0 --scores {scores.safetensors}", "--hidden must be at least 1"),
    ("{model} --drop-layers 9", "--drop-layers names 9; the source has layers 0 to 2"),
    ("{model} --drop-layers 0-999999999999", "--drop-layers names 0-999999999999"),
    ("{model} --ffn 88 --heads 6 --scores {scores.safetensors}", "nothing is cut: the source has --heads 6, --ffn 88"),
    ("{model} --hidden 36 --scores {scores.safetensors} --moments {file}", "--moments is for compensation"),
    ("{model} --drop-layers 0-2", "--drop-layers names every layer"),
    ("{model} --drop-layers 2-0", "--drop-layers 2-0 counts backwards"),
    ("{model} --drop-layers x", "--drop-layers 'x' is not a list of layers"),
    ("{model} --drop-layers 0 --layers 1", "--drop-layers leaves 2 layers, --layers says 1"),
    ("{model} --target width --hidden 36 --drop-layers 0", "--target width does not take --drop-layers"),
    ("{model} --target depth --hidden 36", "--target depth needs a depth"),
    ("{model} --target both --hidden 36", "--target both needs a depth"),
    ("{model} --target length --hidden 36", "--target length is unknown"),
    ("{model} --params 1 --scores {scores.safetensors}", "no shape of about 1 parameters can be cut"),
    ("{lists} --drop-layers 0", "layer_types must list one entry for each of the 3 layers"),
    ("{model} --drop-layers 0 -o {taken}", "taken exists and was not made by minitron"),
    ("{model} --drop-layers 0 -o {taken} --overwrite", "taken exists and was not made by minitron"),
    ("{model} --drop-layers 0 -o {file}", "file exists and was not made by minitron"),
    ("{model} --drop-layers 0 -o {ours}", "ours exists already"),
    ("{model} --drop-layers 0 -o {file}/below", "cannot be written"),
]  # fmt: skip


def listing(place: Path) -> list[str]:
    return sorted(str(f.relative_to(place)) for f in place.rglob("*"))


@pytest.mark.parametrize(("line", "message"), TABLE)
def test_an_error_a_hint_and_nothing_left(line: str, message: str, place: Path, minitron: Minitron) -> None:
    before = listing(place)
    words = [word.replace("{", f"{place}/").replace("}", "") for word in line.split()]
    output = [] if "-o" in words else ["-o", str(place / "out")]
    result = minitron("prune", *words, *output)
    assert result.code == 1
    errors = [text for text in result.err.splitlines() if text.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]
    assert any(text.startswith("hint: ") and len(text) > 10 for text in result.err.splitlines())
    assert "Traceback" not in result.err
    assert result.out == ""
    assert listing(place) == before


@pytest.mark.parametrize(
    "line",
    [
        "--hidden many",
        "--heads 1.5",
        "--hidden 4.5",
        "--ffn 0.0001K",
        "--unknown",
        "--multiple-of 0",
        "--max-shard-size -1",
    ],
)
def test_usage_errors_exit_2(line: str, place: Path, minitron: Minitron) -> None:
    result = minitron("prune", place / "model", *line.split(), "-o", place / "out")
    assert result.code == 2
    assert [text.split()[0] for text in result.err.splitlines()] == ["error:", "hint:"]


@pytest.mark.parametrize(
    ("line", "error", "hint"),
    [
        ("prune m --hiden 3", "`minitron prune` has no option --hiden", "did you mean '--hidden'"),
        ("prune m --hidden abc", "--hidden: 'abc' is not a count", "write it like 4.5B"),
        ("prune m --multiple-of 0", "--multiple-of: ", "see `minitron prune --help`"),
        ("imporance m", "no such command 'imporance'", "did you mean 'importance'?"),
        ("data tokenise", "no such command 'tokenise'", "did you mean 'tokenize'?"),
    ],
)
def test_the_parser_says_what_to_type_instead(line: str, error: str, hint: str, minitron: Minitron) -> None:
    said = minitron(*line.split()).err.splitlines()
    assert said[0].startswith(f"error: {error}")
    assert said[1].startswith(f"hint: {hint}")


@pytest.mark.parametrize("line", ["", "data", "recipes"])
def test_a_group_without_a_command_shows_its_help(line: str, minitron: Minitron) -> None:
    result = minitron(*line.split())
    assert result.code == 2
    assert result.err.startswith("Usage: minitron")


def test_overwrite_replaces_what_is_ours(place: Path, minitron: Minitron) -> None:
    line = ("prune", place / "model", "--drop-layers", 0, "-o", place / "ours", "--overwrite")
    assert minitron(*line).code == 0
    manifest = json.loads((place / "ours" / "minitron.json").read_text())
    assert manifest["verb"] == "prune"
    assert not [f for f in place.iterdir() if f.name.startswith(".")]


@pytest.mark.parametrize("command", ["verify", "inspect"])
def test_other_commands_refuse_what_is_not_theirs(command: str, place: Path, minitron: Minitron) -> None:
    result = minitron(command, place / "empty")
    assert result.code == 1
    assert result.err.startswith("error: ")
    assert "hint: " in result.err


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 100 kB, where the system lets us make one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = os.geteuid() == 0 and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(disk)], capture_output=True, check=False
    ).returncode == 0  # fmt: skip
    if not mounted:
        pytest.skip("mounting a small tmpfs needs root")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_disk_that_is_too_small_is_refused_at_once(small_disk: Path, place: Path, minitron: Minitron) -> None:
    result = minitron("prune", place / "model", "--drop-layers", 0, "-o", small_disk / "out")
    assert result.code == 1
    assert "needs 0.2 MB and its disk has 0.1 MB free" in result.err
    assert list(small_disk.iterdir()) == []


def test_a_disk_that_fills_up(
    small_disk: Path, place: Path, minitron: Minitron, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The space was there when the run began, and is gone before it ends."""
    monkeypatch.setattr("minitron_cli.prune.write.need_space", lambda path, num_bytes: None)
    result = minitron("prune", place / "model", "--drop-layers", 0, "-o", small_disk / "out")
    assert result.code == 1
    assert "error: no space left for" in result.err
    assert "hint: free some space" in result.err
    assert list(small_disk.iterdir()) == []


@pytest.mark.slow
def test_killed_at_any_moment_and_typed_again(toy: Toy, tmp_path: Path) -> None:
    """SIGKILL at ten moments of a run: never anything at the output path but a whole result; the next run cleans up."""
    model = toy("llama", vocab_size=60_000, hidden_size=240, num_hidden_layers=3)
    line = [sys.executable, "-m", "minitron_cli", "prune", str(model), "--drop-layers", "0", "-o", "out"]
    quiet = {"cwd": tmp_path, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    started = time.monotonic()
    subprocess.run(line, check=True, **quiet)
    duration = time.monotonic() - started
    whole = {f.name: f.read_bytes() for f in (tmp_path / "out").iterdir()}
    for moment in np.linspace(0.3, 0.98, 10) * duration:
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        process = subprocess.Popen(line, **quiet)
        time.sleep(moment)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if (tmp_path / "out").exists():
            assert {f.name: f.read_bytes() for f in (tmp_path / "out").iterdir()} == whole
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    subprocess.run(line, check=True, **quiet)
    assert {f.name: f.read_bytes() for f in (tmp_path / "out").iterdir()} == whole
    assert [f.name for f in tmp_path.iterdir()] == ["out"], "what killed runs left is still there"


def test_interrupted_leaves_nothing(toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from minitron_cli.__main__ import run

    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("minitron_cli.prune.write.carry_files", interrupt)
    with pytest.raises(SystemExit) as stopped:
        sys.exit(run(["prune", str(toy("llama")), "--drop-layers", "0", "-o", str(tmp_path / "out")]))
    assert stopped.value.code == 130
    assert list(tmp_path.iterdir()) == []
