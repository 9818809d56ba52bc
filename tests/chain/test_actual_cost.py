"""The forecast against what a chain really took: tokens, FLOPs and bytes to the unit; time and memory are only kept."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from minitron_cli.__main__ import run as run_line
from minitron_cli.chain.actual_cost import Ended, compare
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


def test_tokens_flops_and_bytes_are_forecast_to_the_unit(finished: tuple[Recipe, Path, str]) -> None:
    _, directory, _ = finished
    records = load(directory)
    for name, record in records.items():
        for key in ("tokens", "flops", "disk_bytes"):
            assert record.took[key] == record.forecast[key], (name, key)
    assert {name: r.took["tokens"] for name, r in records.items()} == {
        "scores": 6 * 32,
        "cut": 0,
        "small": 3 * 4 * 32,  # 300 tokens are two whole batches and a part of a third
        "low": 2 * 2 * 16,
    }


def test_what_was_counted_is_what_lies_there(finished: tuple[Recipe, Path, str]) -> None:
    _, directory, _ = finished
    for name, record in load(directory).items():
        output = directory / (f"{name}.safetensors" if name == "scores" else name)
        files = [output] if output.is_file() else [f for f in output.rglob("*") if f.is_file()]
        assert record.took["all_bytes"] == sum(f.stat().st_size for f in files)
        if name in ("cut", "small"):
            assert record.took["disk_bytes"] == sum(t.nbytes for t in load_file(output / "model.safetensors").values())
    low, small = load(directory)["low"].took, load(directory)["small"].took
    assert low["disk_bytes"] * 2 == small["disk_bytes"], "bfloat16 after float32"


def test_flops_by_hand(finished: tuple[Recipe, Path, str]) -> None:
    _, directory, family = finished
    if family != "llama":
        pytest.skip("the sum below is Llama's")

    def forward(hidden: int, layers: int, context: int) -> int:
        block = 2 * hidden * (6 * 10) * 2 + 2 * hidden * (2 * 10) * 2 + 3 * 2 * hidden * 88
        return layers * (block + 4 * 6 * 10 * context // 2) + 2 * 97 * hidden

    records = load(directory)
    assert records["scores"].took["flops"] == 192 * forward(48, 3, 32)
    assert records["small"].took["flops"] == 384 * (3 * forward(36, 2, 32) + forward(48, 3, 32))
    assert records["low"].took["flops"] == 64 * 3 * forward(36, 2, 16)


def test_time_and_memory_are_kept_beside_the_forecast(finished: tuple[Recipe, Path, str]) -> None:
    recipe, directory, _ = finished
    steps = {step["step"]: step for step in write_summary(recipe, directory)["steps"]}
    assert all(step["took"]["host_bytes"] == 12345 for step in steps.values())
    ratios = compare(steps["small"]["forecast"], steps["small"]["took"])
    assert ratios["tokens"] == ratios["flops"] == ratios["disk_bytes"] == 1.0
    assert ratios["memory_bytes"] > 0
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
    assert "--mfu 0 are no speed" in capsys.readouterr().err


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
    assert memory_text({"memory_bytes": 6 * 10**8, "host_bytes": 6 * 10**8}, forecast) == "600.00 MB"
    assert memory_text({"memory_bytes": 0, "host_bytes": 7 * 10**7}, {}) == "70.00 MB"
