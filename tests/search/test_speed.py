"""Search by speed: what is taken against brute force over every shape, what is built, and nothing is timed twice."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from minitron_cli.__main__ import run
from minitron_cli.checkpoint.hfconfig import config_for
from minitron_cli.checkpoint.reader import open_checkpoint
from minitron_cli.errors import MinitronError
from minitron_cli.evaluate.bench import Cell
from minitron_cli.evaluate.engines import subject_of_config
from minitron_cli.hf.devices import machine_words
from minitron_cli.search.budget import fast_enough
from minitron_cli.search.result import Entry
from minitron_cli.search.speed import Speed, SpeedBudget
from minitron_cli.search.timing import ShapeTimer
from minitron_cli.spec.search import Candidate
from minitron_cli.spec.shape import Shape, kv_bytes_per_token, num_parameters
from tests.training.runs import write_text

CELLS = (Cell(64, 32, 1), Cell(8, 64, 4))
SOURCE = Candidate(Shape({"layer": 8, "hidden": 64}), 8 * 64 * 64, 8 * 64 * 64)


class FakeWatch:
    """Times by a law of its own: the forecast has to find it out. `bend` makes it other than linear."""

    def __init__(self, budget: SpeedBudget, bend: float = 0.0) -> None:
        self.budget, self.bend, self.calls = budget, bend, 0

    def speed(self, shape: Shape, name: str) -> Speed:
        self.calls += 1
        return self.of(shape)

    def of(self, shape: Shape) -> Speed:
        seconds = {str(cell): self._seconds(shape, cell) for cell in CELLS}
        source = {str(cell): self._seconds(SOURCE.shape, cell) for cell in CELLS}
        return Speed(seconds, source, {cell: source[cell] / seconds[cell] for cell in seconds})

    def _seconds(self, shape: Shape, cell: Cell) -> float:
        size = shape["layer"] * shape["hidden"] ** 2 * 1e-8 * cell.batch
        return 1e-3 + shape["layer"] * 2e-4 * cell.output / 32 + size + self.bend * size**2


def _entries() -> list[Entry]:
    """A grid whose quality follows size, but not strictly."""
    noise = np.random.default_rng(0)
    found = []
    for layers in range(2, 9):
        for hidden in range(16, 65, 4):
            size = layers * hidden**2
            shape = Shape({"layer": layers, "hidden": hidden})
            found.append(Entry(Candidate(shape, size, size), forecast=-size * noise.uniform(0.8, 1.2)))
    return sorted(found, key=Entry.sort_key)


@pytest.mark.parametrize("budget", [{"speedup": 1.5}, {"latency_ms": 2.0}, {"speedup": 1.2, "latency_ms": 2.4}])
@pytest.mark.parametrize("bend", [0.0, 5.0])
def test_the_best_that_are_fast_enough_are_taken_without_timing_all(budget: dict[str, float], bend: float) -> None:
    watch, entries = FakeWatch(SpeedBudget(CELLS, 5, **budget), bend), _entries()
    taken = fast_enough(watch, SOURCE, entries, 6, lambda text: None)  # type: ignore[arg-type]
    every = [e.candidate for e in entries if watch.of(e.candidate.shape).holds(watch.budget)]
    assert [e.candidate for e in taken] == every[:6]
    assert watch.calls < len(entries) / 2
    assert all(e.speed == watch.of(e.candidate.shape) for e in taken)


def test_both_bounds_must_hold_in_every_cell() -> None:
    speed = Speed({"a": 0.010, "b": 0.020}, {"a": 0.020, "b": 0.030}, {"a": 2.0, "b": 1.5})
    assert speed.holds(SpeedBudget(CELLS, latency_ms=20.0, speedup=1.5))
    assert not speed.holds(SpeedBudget(CELLS, latency_ms=19.9))
    assert not speed.holds(SpeedBudget(CELLS, speedup=1.51))
    assert speed.holds(SpeedBudget(CELLS))


def test_a_budget_that_nothing_holds_names_the_fastest() -> None:
    watch = FakeWatch(SpeedBudget(CELLS, 5, latency_ms=0.01))
    with pytest.raises(MinitronError, match=r"no shape on the grid meets --latency 0.01 .* takes \d+\.\d ms"):
        fast_enough(watch, SOURCE, _entries(), 6, lambda text: None)  # type: ignore[arg-type]
    assert watch.calls <= 5, "the smallest are timed, and no more"


@pytest.mark.parametrize("family", ["llama", "mixtral", "gpt_neox"])
def test_random_weights_have_the_candidates_shape(family: str, toy: Callable[..., Path]) -> None:
    source = open_checkpoint(toy(family))
    shape = source.shape.with_(layer=2)
    config = config_for(source.config, source.family, shape)
    subject = subject_of_config(config, "two-layers", device="cpu", dtype="float32")
    assert subject.parameters == num_parameters(source.family.expected(config), shape)
    assert subject.run(Cell(4, 3, 2)).kv_bytes == 2 * 6 * kv_bytes_per_token(shape, bytes_per_element=4)


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory, toy: Callable[..., Path]) -> list[str]:
    directory = tmp_path_factory.mktemp("speed")
    text, scores = str(write_text(directory / "text.jsonl")), str(directory / "scores.safetensors")
    model = str(toy("llama"))
    assert run(["importance", model, "--data", text, "--samples", "8", "--seq-len", "32", "-o", scores]) == 0
    return ["search", model, "--grid", "ffn=40:88:16", "--grid", "layers=1:3", "--scores", scores, "--data", text,
            "--seq-len", "32", "--eval-windows", "8", "--measure", "2", "--bench-grid", "8x4", "--bench-repeats", "2",
            "--device", "cpu", "-o", str(directory / "out")]  # fmt: skip


def test_speeds_stand_in_the_table_and_are_not_measured_twice(
    line: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from minitron_cli.search import timing

    assert run([*line, "--speedup", "0.001"]) == 0
    assert "to the last token" in capsys.readouterr().out
    output = Path(line[-1])
    found = json.loads((output / "search.json").read_text())
    assert len(found["candidates"]) == 2
    assert found["speed_budget"]["speedup"] == 0.001
    for candidate in found["candidates"]:
        cell = candidate["speed"]
        assert cell["speedups"] == {
            "8x4 batch 1": cell["source_seconds"]["8x4 batch 1"] / cell["seconds"]["8x4 batch 1"]
        }
    assert "milliseconds to the last token" in _texts((output / "pareto.svg").read_text())

    def not_again(*_: Any, **__: Any) -> None:
        raise AssertionError("timed twice")

    monkeypatch.setattr(timing, "measure_rounds", not_again)
    assert run([*line, "--speedup", "0.001", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == found
    with pytest.raises(AssertionError, match="timed twice"):
        run([*line, "--speedup", "0.001", "--bench-batch-sizes", "2"])


def _texts(svg: str) -> str:
    """matplotlib draws letters as outlines and keeps the words as comments."""
    return "\n".join(part.split("-->")[0].strip() for part in svg.split("<!--")[1:])


def test_without_a_budget_the_measured_are_timed_for_the_table(line: list[str]) -> None:
    assert run([*line, "--params", "60K", "--tolerance", "20%", "--measure", "1"]) == 0
    found = json.loads((Path(line[-1]) / "search.json").read_text())["candidates"]
    assert [c["speed"] is not None for c in found] == [True] + [False] * (len(found) - 1)
    assert len(found) > 1


def test_the_machine_is_part_of_what_a_time_is() -> None:
    workspace: Any = SimpleNamespace(request=SimpleNamespace(device="cpu"))
    timer = ShapeTimer(workspace, SpeedBudget((Cell(8, 8, 1),)), print)
    assert timer._identity()["machine"] == machine_words(torch.device("cpu"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--latency", "-1"], "--latency -1 is not a budget"),
        (["--speedup", "0"], "--speedup 0 is not a budget"),
        (["--speedup", "2", "--list"], "--list knows sizes, not speeds"),
        (["--speedup", "2", "--bench-grid", "8"], "cannot read the grid '8'"),
        (["--speedup", "2", "--bench-grid", "500x500"], "longer than the context"),
        (["--speedup", "1e9"], "no shape on the grid meets --speedup 1e+09"),
        (["--kv-tokens", "5", "--params", "60K"], "--kv-tokens counts towards --memory"),
        (["--params", "60K", "--tolerance", "20%", "--devices", "gpu"], "'gpu' is not a device"),
        (["--params", "60K", "--tolerance", "20%", "--devices", "cuda"], "not one device"),
    ],
)
def test_bad_input(line: list[str], words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    given = [*line]
    if "--bench-grid" in words:
        at = given.index("--bench-grid")
        del given[at : at + 2]
    assert run([*given, *words]) == 1
    assert message in capsys.readouterr().err
