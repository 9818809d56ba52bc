"""What a stranger types wrong in a recipe, by the command line: one error, one hint, before anything runs."""

from pathlib import Path

import pytest

from minitron_cli.__main__ import run

WORLD = "steps:\n  w: {verb: toy}\n"
TRAIN = "  t: {verb: train, inputs: {model: w/teacher-init, data: w/corpus/train.jsonl}, options: {OPTIONS}}\n"
SCORES = "  s: {verb: importance, inputs: {model: w/teacher-init, data: w/corpus/train.jsonl}}\n"


def _train(options: str) -> str:
    return WORLD + TRAIN.replace("OPTIONS", options)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (WORLD.replace("toy", "toy, optoins: {seed: 0}"), "unknown key 'optoins'\nhint: did you mean 'options'"),
        (_train("stpes: 3"), "has no option 'stpes'\nhint: did you mean 'steps'"),
        (_train("steps: many"), "step 't': --steps: 'many' is not a count"),
        (_train("from-scratch: 7"), "step 't': got unexpected extra argument"),
        (_train("output: elsewhere"), "step 't': --output is set by `run`, not by a step"),
        (_train("dry-run: true"), "step 't': --dry-run is set by `run`, not by a step"),
        (WORLD + SCORES + "  s.safetensors: {verb: toy}\n", "would write to s.safetensors, as step 's' does"),
        (WORLD + "  W: {verb: toy}\n", "step 'W' would write to W, as step 'w' does"),
        ("steps:\n  family.json: {verb: toy}\n", "would write to family.json, as the run itself does"),
        ("steps:\n  a: {verb: prune, inputs: {model: b}}\n  b: {verb: prune, inputs: {model: a}}\n", "a -> b -> a"),
        (WORLD + SCORES.replace("w/teacher-init", "x/teacher-init"), "step 's' needs 'x/teacher-init', which no step"),
        ("steps: {}\n", "has no steps"),
        ("steps:\n", "steps is not a mapping of names but empty"),
        ("", "recipe.yaml is not a mapping of names but empty"),
        ("- a\n", "is not a mapping of names but ['a']"),
        ("steps:\n  1: {verb: toy}\n", "steps: 1 is not a name"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_before_anything_runs(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    assert run(["run", str(tmp_path / "recipe.yaml"), "-o", str(tmp_path / "run")]) == 1
    stderr = capsys.readouterr().err
    assert message in stderr
    assert stderr.startswith("error: ")
    assert len(stderr.splitlines()) == 2
    assert not (tmp_path / "run").exists()


def test_a_run_directory_that_is_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "recipe.yaml").write_text(WORLD)
    (tmp_path / "run").write_text("mine")
    assert run(["run", str(tmp_path / "recipe.yaml"), "-o", str(tmp_path / "run")]) == 1
    assert "cannot be a run directory" in capsys.readouterr().err
    assert (tmp_path / "run").read_text() == "mine"


def test_from_after_until(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["run", "tiny", "--from", "small", "--until", "large", "--dry-run"]) == 1
    assert "--from small is after --until large" in capsys.readouterr().err
    assert run(["run", "tiny", "--until", "large", "--print-commands"]) == 1
    assert "prints the whole chain" in capsys.readouterr().err


def test_a_recipe_without_inputs_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["run", "tiny", "--set", "data=x", "--dry-run"]) == 1
    assert "hint: it takes none; options are set as STEP.option=value" in capsys.readouterr().err
