"""Searches and recipes on a model of text and images: its text model is what they are about, the rest comes along."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from minitron_cli.__main__ import run
from minitron_cli.chain.estimate import estimate
from minitron_cli.chain.summary import known_configs
from minitron_cli.checkpoint.reader import open_checkpoint
from minitron_cli.spec.axes import FLAG_OF_AXIS
from minitron_cli.spec.recipe import Recipe, Step
from tests.prune.cutting import prune_to
from tests.toys import toy_values
from tests.wrapped import WRAPPED, image_batch, load_whole, make_wrapped, sizes_for, stored

RECIPE = """
about: a cut of the text model, distilled for two steps
inputs:
  model: a model of text and images
  data: text
steps:
  scores: {verb: importance, inputs: {model: "{model}", data: "{data}"}, options: {samples: 8, seq-len: 16}}
  small: {verb: prune, inputs: {model: "{model}", scores: scores}, options: {hidden: 36, ffn: 56}}
  student:
    verb: distill
    inputs: {student: small, teacher: "{model}", data: "{data}"}
    options: {steps: 2, batch: 2, seq-len: 16}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("wrapped")
    make_wrapped("gemma3", directory / "model")
    words = np.random.default_rng(0).choice(list("abc de"), (20, 100))
    (directory / "text.jsonl").write_text("".join(json.dumps({"text": "".join(line)}) + "\n" for line in words))
    (directory / "recipe.yaml").write_text(RECIPE)
    return directory


def test_a_recipe_runs(place: Path) -> None:
    given = ["--set", f"model={place / 'model'}", "--set", f"data={place / 'text.jsonl'}"]
    assert run(["run", str(place / "recipe.yaml"), "-o", str(place / "family"), *given]) == 0
    student = place / "family" / "student"
    assert open_checkpoint(student).shape["hidden"] == 36
    before, after = stored(place / "model"), stored(student)
    towers = [name for name in before if "vision_tower" in name]
    assert towers
    assert all(torch.equal(before[name], after[name]) for name in towers)
    with torch.inference_mode():
        assert load_whole(student)(**image_batch("gemma3")).logits.isfinite().all()


def test_a_search_ends_in_a_line_that_cuts_the_whole(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, text, scores = str(place / "model"), str(place / "text.jsonl"), str(tmp_path / "scores.safetensors")
    assert run(["importance", model, "--data", text, "--samples", "8", "--seq-len", "16", "-o", scores]) == 0
    line = ["search", model, "--params", "50K", "--tolerance", "30%", "--grid", "ffn=40:88:16", "--scores", scores]
    line += ["--data", text, "--seq-len", "16", "--eval-windows", "4", "--measure", "1", "-o", str(tmp_path / "out")]
    assert run(line) == 0
    following = capsys.readouterr().out.splitlines()[-1].removeprefix("next: minitron ").split()
    assert run([*following, "-o", str(tmp_path / "small")]) == 0
    assert open_checkpoint(tmp_path / "small").whole["model_type"] == "gemma3"


@pytest.mark.parametrize("model_type", WRAPPED)
def test_the_disk_that_a_cut_takes_is_estimated_with_what_stands_around(model_type: str, tmp_path: Path) -> None:
    source, sizes = make_wrapped(model_type, tmp_path / "model"), sizes_for(model_type, "hidden")
    sizes = sizes if "head" in sizes else {"hidden": 24}  # a multiple of 8, as experts need it
    prune_to(source, tmp_path / "small", sizes)
    flags = {FLAG_OF_AXIS[axis]: size for axis, size in sizes.items()}
    files = {"model": ("{model}",), "scores": ("{scores}",)}
    steps = (
        Step("cut", "prune", files, flags),
        Step("text", "prune", files, {**flags, "text-only": True}),
        Step("out", "distill", {"student": ("cut",), "teacher": ("{model}",), "data": ("{text}",)}, {"steps": 2}),
    )
    recipe = Recipe("r", "", {}, steps, given={"model": str(source)})
    cut, text, out = estimate(recipe, known_configs(recipe, tmp_path))
    written, checkpoint = stored(tmp_path / "small"), open_checkpoint(tmp_path / "small")
    assert cut.disk_bytes == out.disk_bytes == sum(t.nbytes for t in written.values())
    assert text.disk_bytes == cut.disk_bytes - sum(written[name].nbytes for name in checkpoint.beside)
    assert out.working_bytes > out.disk_bytes + cut.disk_bytes


@pytest.mark.parametrize("model_type", ["nemotron_h", "gemma3"])
def test_an_input_declared_as_it_is_published_is_estimated(model_type: str, tmp_path: Path) -> None:
    """Nemotron-H leaves the number of its layers to their list; a model of text and images has its text's config."""
    if model_type == "gemma3":
        config = json.loads((make_wrapped("gemma3", tmp_path / "model") / "config.json").read_text())
        expected = open_checkpoint(tmp_path / "model").shape["ffn"]
    else:
        config = {key: value for key, value in toy_values("nemotron_h").items() if key != "num_hidden_layers"}
        expected = config["intermediate_size"]
    step = Step("cut", "prune", {"model": ("{model}",), "scores": ("scores",)}, {"hidden": 40})
    (found,) = estimate(Recipe("r", "", {}, (step,)), {"{model}": config})
    assert found.model is not None
    assert (found.model.shape["hidden"], found.model.shape["ffn"]) == (40, expected)
