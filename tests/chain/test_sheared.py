"""The two stages of Sheared-LLaMA as one recipe, on toys: references, masks under a dynamic mix, training on."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from minitron_cli.__main__ import run
from minitron_cli.checkpoint.reader import open_checkpoint
from tests.training.mixing import WORDS, write_domains

STAGES = """
about: a toy in two stages
inputs:
  teacher: {about: a toy}
steps:
  references:
    verb: reference-loss
    inputs: {source: "{teacher}"}
    options: {seq-len: 32, eval-windows: 4}
  sheared:
    verb: shear
    inputs: {model: "{teacher}", reference-losses: references}
    options: {ffn: 56, steps: 30, max-gap: 1, mix: dynamic, mix-every: 10}
  student:
    verb: train
    inputs: {model: sheared, reference-losses: references, mix-from: sheared}
    options: {steps: 4, mix: dynamic, mix-every: 2}
"""
COMMON = {"batch": 4, "seq-len": 32, "lr": 1e-3, "eval-windows": 4, "device": "cpu"}


@pytest.mark.slow
def test_the_second_stage_begins_with_the_mix_that_the_first_ended_with(
    toy: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    train, held_out = write_domains(tmp_path / "text", documents=200)
    recipe = yaml.safe_load(STAGES)
    for name in WORDS:
        recipe["inputs"][name] = f"text of {name}"
        recipe["inputs"][f"{name}-held-out"] = f"held-out text of {name}"
    held = [f"{{{name}-held-out}}" for name in WORDS]
    for name, step in recipe["steps"].items():
        step["inputs"]["eval-data"] = held
        if name != "references":
            weights = ["" if name == "student" else f":{w}" for w in (0.5, 0.3, 0.2)]
            step["inputs"]["data"] = [f"{{{domain}}}{weight}" for domain, weight in zip(WORDS, weights)]
            step["options"] |= COMMON
    (tmp_path / "stages.yaml").write_text(yaml.safe_dump(recipe))
    texts = dict(zip((*WORDS, *(f"{name}-held-out" for name in WORDS)), (*train, *held_out)))
    given = [word for name, path in {"teacher": toy("llama"), **texts}.items() for word in ("--set", f"{name}={path}")]
    line = ["run", "stages.yaml", "-o", "out", *given]
    assert run([*line, "--dry-run"]) == 0
    assert run(line) == 0
    assert open_checkpoint(tmp_path / "out" / "student").shape["ffn"] == 56
    manifests = [tmp_path / "out" / name / "minitron.json" for name in ("sheared", "student")]
    sheared, student = (json.loads(manifest.read_text()) for manifest in manifests)
    assert [step for step, _ in sheared["training"]["mix"]] == [10, 20]
    begun = [float(sha.split(" x ")[1]) for name, sha in sorted(student["inputs"].items()) if name.startswith("data")]
    assert begun == pytest.approx(sheared["training"]["mix"][-1][1], rel=1e-5)
    # A domain whose text changes makes the steps that read it again, also where it is given with a weight.
    Path(train[0]).write_text(Path(train[1]).read_text())
    capfd.readouterr()
    assert run([*line, "--dry-run", "--json"]) == 0
    planned = {step["step"]: step["action"] for step in json.loads(capfd.readouterr().out)["steps"]}
    assert planned == {"references": "done", "sheared": "run", "student": "run"}
