"""Recipes are read strictly: each mistake is named, with what would have been right."""

from pathlib import Path

import pytest

from minitron_cli.errors import MinitronError
from minitron_cli.spec.recipe import command_line
from minitron_cli.spec.recipe_file import apply_settings, load_recipe

OPTIONS = {
    "toy": {"seed"},
    "train": {"data", "steps", "from-scratch"},
    "importance": {"data", "samples"},
    "prune": {"scores", "hidden", "layers"},
    "distill": {"teacher", "data", "steps", "lr"},
    "eval": {"data", "tasks"},
    "bench": {"grid"},
}
GOOD = """
about: a chain
inputs:
  text: the corpus
steps:
  small:
    verb: distill
    inputs: {student: cut, teacher: large, data: "{text}"}
    options: {steps: 10, lr: 1e-3}
  cut:
    verb: prune
    inputs: {model: large, scores: scores}
    options: {hidden: 48}
  scores:
    verb: importance
    inputs: {model: large, data: ["{text}/a.jsonl", world/b.jsonl]}
  world:
    verb: toy
  large:
    verb: train
    inputs: {model: world/teacher-init, data: "{text}"}
    options: {from-scratch: true, steps: 5}
"""


def _load(tmp_path: Path, text: str):
    (tmp_path / "chain.yaml").write_text(text)
    return load_recipe(tmp_path / "chain.yaml", OPTIONS)


def test_steps_come_after_what_they_need_and_become_command_lines(tmp_path: Path) -> None:
    recipe = apply_settings(_load(tmp_path, GOOD), ["text=corpus", "small.steps=20"], OPTIONS)
    names = [step.name for step in recipe.steps]
    assert sorted(names) == ["cut", "large", "scores", "small", "world"]
    assert (
        names.index("world") < names.index("large") < names.index("scores") < names.index("cut") < names.index("small")
    )
    lines = {step.name: " ".join(command_line(recipe, step, Path("run"))) for step in recipe.steps}
    assert lines == {
        "world": "toy run/world",
        "large": "train run/world/teacher-init --data corpus --from-scratch --steps 5 -o run/large",
        "scores": "importance run/large --data corpus/a.jsonl --data run/world/b.jsonl -o run/scores.safetensors",
        "cut": "prune run/large --scores run/scores.safetensors --hidden 48 -o run/cut",
        "small": "distill run/cut --teacher run/large --data corpus --steps 20 --lr 1e-3 -o run/small",
    }


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("steps: 10", "stpes: 10", "`minitron distill` has no option 'stpes'; did you mean 'steps'?"),
        ("verb: prune", "verb: prun", "unknown verb 'prun'; did you mean 'prune'"),
        ("about:", "abuot:", "unknown key 'abuot'; did you mean 'about'"),
        ("student: cut", "student: cutt", "step 'small' needs 'cutt', which no step makes; did you mean 'cut'"),
        ("student: cut, ", "", "step 'small' names no 'student' input"),
        (
            'data: "{text}"}\n    options: {from',
            'data: "{txt}"}\n    options: {from',
            "input 'txt', which is not declared",
        ),
        ("model: world/teacher-init", "model: small", "the steps form a cycle: "),
        ("  world:\n    verb: toy", "  world:\n    verb: toy\n  world:\n    verb: toy", "'world' is there twice"),
        ("  world:", "  ../world:", "cannot name a directory"),
        ("hidden: 48", "hidden: {a: 1}", "cut.hidden"),
        ("about: a chain", "about: [", "is not a YAML recipe"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in GOOD
    with pytest.raises(MinitronError) as caught:
        _load(tmp_path, GOOD.replace(old, new, 1))
    assert message in f"{caught.value.message}; {caught.value.hint}"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("small.stesp=1", "did you mean 'steps'"),
        ("smal.steps=1", "the recipe has no step 'smal'; did you mean 'small'"),
        ("txet=x", "declares no input 'txet'; did you mean 'text'"),
        ("text", "has no value"),
        ("small.steps=[1", "the value is not YAML"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, setting: str, message: str) -> None:
    with pytest.raises(MinitronError) as caught:
        apply_settings(_load(tmp_path, GOOD), [setting], OPTIONS)
    assert message in f"{caught.value.message}; {caught.value.hint}"


def test_an_input_that_is_not_given_is_asked_for(tmp_path: Path) -> None:
    recipe = _load(tmp_path, GOOD)
    with pytest.raises(MinitronError, match="input 'text' is not given: the corpus"):
        command_line(recipe, recipe.step("large"), Path("run"))
