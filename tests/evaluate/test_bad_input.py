"""What a user can get wrong: an `error:` that names it, exit code 1, no traceback, nothing written."""

from collections.abc import Callable
from pathlib import Path

import pytest

from minitron_cli.__main__ import run


@pytest.fixture
def spoil(toy, corpus: Path, task_dir: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """The arguments of an evaluation that works, with some of them replaced or added; None removes one."""

    def make(**changes: object) -> list[str]:
        options = {
            "--tasks": "letters_one", "--include": task_dir, "--data": corpus, "--seq-len": 32, "--device": "cpu",
            "--output": tmp_path / "out.json",
            **{f"--{name.replace('_', '-')}": value for name, value in changes.items()},
        }  # fmt: skip
        return [str(toy("llama")), *(str(x) for pair in options.items() if pair[1] is not None for x in pair)]

    return make


@pytest.mark.parametrize(
    ("changes", "message", "hint"),
    [
        ({"suite": "minitrn"}, "no suite 'minitrn'", "minitron"),
        ({"include": "/nowhere/at/all"}, "/nowhere/at/all is not a directory", "task YAMLs"),
        ({"data": "/nowhere.jsonl"}, "/nowhere.jsonl", ""),
        ({"seq_len": 4096}, "--seq-len 4096 is longer than the context of", "use --seq-len 128 or shorter"),
        ({"device": "gpu"}, "'gpu' is not a device", "cpu, cuda"),
        ({"dtype": "int4"}, "'int4' is unknown", "float32"),
        ({"separator": "eod"}, "eod", ""),
        ({"assert": "acc"}, "cannot read the gate 'acc'", "reference"),
        ({"limit": "nan"}, "--limit nan leaves nothing", "count"),
        ({"limit": "inf"}, "--limit inf leaves nothing", "count"),
        ({"output": "/proc/x"}, "/proc/x cannot be written: /proc takes no files", "choose another output"),
        ({"include": "/nope", "tasks": None}, "--include /nope is not a directory", "task YAMLs"),
        ({"format": "html"}, "no format 'html'", "markdown"),
        ({"tasks": None, "data": None}, "nothing to evaluate", "--tasks"),
    ],
)
def test_is_named(
    spoil: Callable[..., list[str]], changes: dict[str, object], message: str, hint: str, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert run(["eval", *spoil(**changes)]) == 1
    told = capsys.readouterr().err
    assert "error: " in told
    assert message in told
    assert hint in told
    assert "Traceback" not in told
    assert {path.name for path in tmp_path.iterdir()} <= {"out.json"}  # a failed model is noted in the results


def test_a_weight_of_held_out_text_is_not_ignored(
    spoil: Callable[..., list[str]], corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["eval", *spoil(data=f"{corpus}:0.5")]) == 1
    assert "held-out text has a weight" in capsys.readouterr().err


def test_the_same_line_unspoilt_works(spoil: Callable[..., list[str]], tmp_path: Path) -> None:
    assert run(["eval", *spoil()]) == 0
    assert (tmp_path / "out.json").exists()


def test_no_model_says_how_to_give_one(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in ("eval", "bench"):
        assert run([verb]) == 1
        assert "MINITRON_MODEL" in capsys.readouterr().err


def test_models_come_from_the_environment(
    toy, spoil: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first, *rest = spoil()
    monkeypatch.setenv("MINITRON_MODEL", first)
    assert run(["eval", *rest, "--dry-run"]) == 0
    assert first in capsys.readouterr().out


def test_a_file_that_is_no_checkpoint(
    spoil: Callable[..., list[str]], corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["eval", str(corpus), *spoil()[1:]]) == 1
    assert "is not a model directory" in capsys.readouterr().err
