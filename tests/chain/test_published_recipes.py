"""Every bundled recipe ends, by shape alone, at the published parameter counts."""

import json
from pathlib import Path

import pytest
import typer.main

from minitron_cli.__main__ import run
from minitron_cli.chain.estimate import estimate
from minitron_cli.cli.app import app
from minitron_cli.cli.recipes import bundled, find_recipe, names, options_by_verb
from minitron_cli.spec.recipe_file import load_recipe

# recipe -> step -> (total, non-embedding) parameters, exact.
PUBLISHED = {
    "llama-3.1-8b-to-4b-width": {
        "corrected": (8_030_261_248, 6_979_588_096),
        "width-4b": (4_512_746_496, 3_724_741_632),
    },
    "llama-3.1-8b-to-4b-depth": {"depth-4b": (4_540_469_248, 3_489_796_096)},
    "mistral-nemo-12b-to-8b": {
        "corrected": (12_247_782_400, 10_905_605_120),
        "mn-minitron-8b": (8_414_105_600, 7_340_363_776),
    },
    "nemotron-4-15b-to-8b-to-4b": {
        "minitron-8b": (8_271_699_968, 6_174_547_968),
        "minitron-4b": (4_190_509_056, 2_617_645_056),
    },
    "qwen3-8b-to-6b": {"qwen3-6b": (5_988_774_912, 4_899_697_664)},
    "pythia-410m-to-160m": {"pythia-160m": (162_322_944, 85_056_000)},
    "llama-2-7b-to-1.3b": {"llama-1.3b": (1_345_423_360, 1_214_351_360)},
    "llama-2-7b-to-2.7b": {"llama-2.7b": (2_701_560_320, 2_537_720_320)},
    "sheared-llama-1.3b": {
        "sheared": (1_345_423_360, 1_214_351_360),
        "llama-1.3b": (1_345_423_360, 1_214_351_360),
    },
    "sheared-llama-2.7b": {
        "sheared": (2_701_560_320, 2_537_720_320),
        "llama-2.7b": (2_701_560_320, 2_537_720_320),
    },
    "sheared-smollm2-100m": {"student": (100_282_392, 75_509_784)},
    # By hand: 49152 x 504 tied, 30 layers of 2 x 504 + 504 x (2 x 576 + 2 x 192) + 3 x 504 x 1152, and a norm.
    "smollm2-135m-to-100m": {"student": (100_282_392, 75_509_784)},
}


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_the_shapes_are_the_published_ones(name: str) -> None:
    made = {cost.step.name: cost.model for cost in estimate(load_recipe(find_recipe(name)))}
    got = {step: (made[step].parameters, made[step].non_embedding) for step in PUBLISHED[name]}
    assert got == PUBLISHED[name]


def test_every_recipe_has_its_oracle() -> None:
    assert set(names()) == {*PUBLISHED, "tiny"}


@pytest.mark.parametrize("path", sorted(bundled().glob("*.yaml")), ids=lambda p: p.stem)
def test_every_option_exists(path: Path) -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert load_recipe(path, options_by_verb(commands)).steps


def test_recipes_are_listed_and_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["recipes", "ls", "--json"]) == 0
    assert {r["name"] for r in json.loads(capsys.readouterr().out)["recipes"]} == set(names())
    assert run(["recipes", "cp", "tiny"]) == 0
    assert run(["run", "tiny.yaml", "--dry-run"]) == 0
    capsys.readouterr()
    assert run(["recipes", "cp", "tiny"]) == 1
    assert "tiny.yaml exists already" in capsys.readouterr().err
