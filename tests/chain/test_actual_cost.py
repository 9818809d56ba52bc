"""Estimate and actual cost of a chain against counts of their own: files, characters, and torch's FLOP counter."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file as load_torch_file
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from minitron_cli.__main__ import run as run_line
from minitron_cli.chain.actual_cost import Ended
from minitron_cli.chain.run import StepFailed, run
from minitron_cli.chain.state import load
from minitron_cli.chain.summary import write_summary
from minitron_cli.cli.costs import memory_text
from minitron_cli.cli.run import _execute
from minitron_cli.spec.recipe import Recipe
from minitron_cli.spec.recipe_file import apply_settings, load_recipe
from tests.training.runs import write_text

RECIPE = """
inputs: {teacher: a model, text: text}
steps:
  scores: {verb: importance, inputs: {model: "{teacher}", data: "{text}"}, options: {samples: 6, seq-len: 32}}
  cut: {verb: prune, inputs: {model: "{teacher}", scores: scores}, options: {hidden: 36, layers: 2}}
  small:
    verb: distill
    inputs: {student: cut, teacher: "{teacher}", data: "{text}"}
    options: {tokens: 300, batch: 4, seq-len: 32, device: cpu}
  low:
    verb: train
    inputs: {model: small, data: "{text}"}
    options: {steps: 2, batch: 2, seq-len: 16, device: cpu, export-dtype: bfloat16}
  again:
    verb: train
    inputs: {model: small, data: "{text}"}
    options: {batch: 32, seq-len: 128, micro-batch: 8, device: cpu}
"""


def _here(arguments: Sequence[str]) -> Ended:
    return Ended(run_line(list(arguments)), peak_bytes=12345)


@pytest.fixture(scope="module", params=["llama", "mixtral"])
def finished(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, toy: Callable[..., Path]
) -> tuple[Recipe, Path, str]:
    directory = tmp_path_factory.mktemp("took")
    (directory / "chain.yaml").write_text(RECIPE)
    text = write_text(directory / "text.jsonl")
    settings = [f"teacher={toy(request.param)}", f"text={text}"]
    recipe = apply_settings(load_recipe(directory / "chain.yaml"), settings, {})
    run(recipe, directory / "run", _here, lambda text: None)
    return recipe, directory / "run", request.param


def test_tokens_are_those_that_the_data_has(finished: tuple[Recipe, Path, str]) -> None:
    """The calibration samples and whole batches as asked; one pass over the data by counting its characters."""
    recipe, directory, _ = finished
    lines = Path(recipe.given["text"]).read_text().splitlines()
    characters = sum(len(json.loads(line)["text"]) + 1 for line in lines)  # and an end-of-text token a document
    records = load(directory)
    assert {name: record.took["tokens"] for name, record in records.items()} == {
        "scores": 6 * 32,
        "cut": 0,
        "small": 3 * 4 * 32,  # 300 tokens are two whole batches and a part of a third
        "low": 2 * 2 * 16,
        "again": characters // 128 // 32 * 32 * 128,
    }
    forecast = {name: record.forecast["tokens"] for name, record in records.items()}
    assert forecast == {name: r.took["tokens"] for name, r in records.items()} | {"again": 0}, "a pass is not foreseen"


def test_bytes_are_those_of_the_files(finished: tuple[Recipe, Path, str]) -> None:
    _, directory, _ = finished
    for name, record in load(directory).items():
        output = directory / (f"{name}.safetensors" if name == "scores" else name)
        files = [output] if output.is_file() else [f for f in output.rglob("*") if f.is_file()]
        assert record.took["all_bytes"] == sum(f.stat().st_size for f in files)
        if name != "scores":
            tensors = load_torch_file(output / "model.safetensors").values()
            assert record.took["disk_bytes"] == sum(t.numel() * t.element_size() for t in tensors)
            assert record.forecast["disk_bytes"] == record.took["disk_bytes"], name


def test_flops_are_those_that_torch_counts(finished: tuple[Recipe, Path, str]) -> None:
    """Products with weights exactly; of full attention half, since a token sees half of the context on average."""
    recipe, directory, _ = finished
    teacher, records = Path(recipe.given["teacher"]), load(directory)
    counted = {
        "scores": 6 * _flops(teacher, 32),
        "cut": 0,
        "small": 12 * (_flops(directory / "cut", 32, train=True) + _flops(teacher, 32)),
        "low": 4 * _flops(directory / "small", 16, train=True),
    }
    for name, flops in counted.items():
        assert records[name].took["flops"] == flops, name
        assert records[name].forecast["flops"] == flops, name


def _flops(model: Path, length: int, train: bool = False) -> float:
    """FLOPs of one sequence's forward (and backward) pass, as torch sees the operators go by."""
    config = AutoConfig.from_pretrained(model)
    config._attn_implementation, config._experts_implementation = "eager", "eager"
    loaded = AutoModelForCausalLM.from_pretrained(model, config=config, dtype=torch.float32)
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(train):
        logits = loaded(torch.arange(4, 4 + length)[None], use_cache=False).logits
        if train:
            logits.sum().backward()
    operators = counter.get_flop_counts()["Global"]
    attention = operators.get(torch.ops.aten.bmm, 0)
    return sum(operators.values()) - attention / 2


def test_time_and_memory_are_kept_beside_the_forecast(finished: tuple[Recipe, Path, str]) -> None:
    recipe, directory, _ = finished
    steps = {step["step"]: step for step in write_summary(recipe, directory)["steps"]}
    assert all(step["took"]["host_bytes"] == 12345 for step in steps.values())
    assert steps["small"]["took"]["memory_bytes"] == 0, "no GPU"
    assert steps["small"]["forecast"]["memory_bytes"] > 0
    kept = [f for f in directory.rglob("minitron.json") if "seconds" in f.read_text() or "host_bytes" in f.read_text()]
    assert not kept, "an artefact must not say how long it took"


def test_a_dry_run_says_what_done_steps_took(
    finished: tuple[Recipe, Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, directory, _ = finished
    given = [word for name, value in recipe.given.items() for word in ("--set", f"{name}={value}")]
    line = ["run", str(directory.parent / "chain.yaml"), *given, "-o", str(directory), "--dry-run"]
    assert run_line([*line, "--json"]) == 0
    steps = {step["step"]: step for step in json.loads(capsys.readouterr().out)["steps"]}
    assert {step["action"] for step in steps.values()} == {"done"}
    assert steps["small"]["took"]["tokens"] == steps["small"]["tokens"] == 384
    assert steps["small"]["memory_bytes"] > 0
    assert run_line([*line, "--mfu", "0"]) == 1
    assert "--mfu 0 are not a speed" in capsys.readouterr().err


def test_seconds_add_up_over_an_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from minitron_cli.chain import run as chain

    clock = iter([0.0, 5.0, 100.0, 107.0])
    monkeypatch.setattr(chain.time, "monotonic", lambda: next(clock))
    (tmp_path / "chain.yaml").write_text("steps: {world: {verb: toy}}")
    recipe = load_recipe(tmp_path / "chain.yaml")
    with pytest.raises(StepFailed):
        run(recipe, tmp_path / "run", lambda words: Ended(143), lambda text: None)

    def make(words: Sequence[str]) -> Ended:
        Path(words[1]).mkdir()
        return Ended(0)

    run(recipe, tmp_path / "run", make, lambda text: None)
    assert load(tmp_path / "run")["world"].seconds == 12.0


def test_a_process_of_its_own_is_waited_for_and_measured(capfd: pytest.CaptureFixture[str]) -> None:
    ended = _execute(["inspect", "no-such-directory"])
    assert ended.code == 1
    assert ended.peak_bytes > 5_000_000, "an interpreter is larger than that"
    assert "error:" in capfd.readouterr().err


def test_the_hosts_memory_is_not_held_against_the_forecast_of_a_device() -> None:
    forecast = {"memory_bytes": 4 * 10**9}
    assert memory_text({"memory_bytes": 5 * 10**9, "host_bytes": 2 * 10**9}, forecast) == "5.00 GB (4.00 GB)"
    assert memory_text({"memory_bytes": 0, "host_bytes": 7 * 10**7}, forecast) == "70.00 MB"
