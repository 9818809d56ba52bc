"""The bench: what it counts against closed forms, who runs when, and what it refuses. No test here times anything."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from minitron_cli.checkpoint.reader import open_checkpoint
from minitron_cli.checkpoint.seal import sealed
from minitron_cli.cli.app import app
from minitron_cli.cli.common import parse_bytes
from minitron_cli.errors import MinitronError
from minitron_cli.evaluate import bench
from minitron_cli.evaluate.bench import Cell, Sample, Subject, batch_ceiling, figure, measure, parse_grid, unsteady
from minitron_cli.evaluate.engines import make_subjects
from minitron_cli.spec.shape import kv_bytes_per_token, state_bytes


def subject(name: str, seconds: list[float], log: list[str], context: int | None = None) -> Subject:
    """A model that takes `seconds` in turn for its first token, and ten times that for the rest."""
    times = iter(seconds)

    def run(cell: Cell) -> Sample:
        log.append(name)
        first = next(times)
        return Sample(first, 10 * first, cell.batch * 100, None)

    return Subject(name, name, 10, 1000, context, run)


def test_rounds_are_interleaved_and_ratios_taken_within_a_round() -> None:
    log: list[str] = []
    # The machine slows down fourfold from round to round; b is always twice as fast as a.
    models = [subject("a", [9.0, 1.0, 4.0, 16.0], log), subject("b", [9.0, 0.5, 2.0, 8.0], log)]
    rows = measure(models, [Cell(8, 11, 2)], repeats=3, warmup=1, say=lambda text: None)
    assert log == ["a", "b"] * 4
    a, b = rows
    assert a["time_to_first_token"]["median"] == 4.0
    assert a["prefill_tokens_per_second"]["median"] == 2 * 8 / 4.0
    assert a["decode_tokens_per_second"]["median"] == 2 * 10 / 40.0
    assert a["time_per_output_token"]["median"] == 40.0 / 10
    assert b["ratios"]["decode_tokens_per_second"] == b["ratios"]["prefill_tokens_per_second"] == 2.0
    assert set(a["ratios"].values()) == {1.0}


def test_rounds_that_do_not_agree_are_named() -> None:
    """Of b, three rounds of seven are held up by other work."""
    slow = [1.0, 1.0, 1.0, 1.0, 20.0, 20.0, 20.0]
    models = [subject("a", [1.0, 1.1, 1.0, 1.1, 1.0, 1.1, 1.0], []), subject("b", slow, [])]
    rows = measure(models, [Cell(8, 11, 2)], repeats=7, warmup=0, say=lambda text: None)
    assert "of b varies by 1900% between the rounds" in (unsteady(rows) or "")
    assert unsteady(rows[:1]) is None


def test_figure_is_the_median_and_the_middle_half() -> None:
    found = figure([1.0, 2.0, 3.0, 4.0, 100.0])
    assert (found.median, found.spread) == (3.0, pytest.approx((4.0 - 2.0) / 3.0))
    assert figure([5.0]).spread == 0.0


def test_the_cache_is_as_large_as_the_shape_says(toy) -> None:
    path = toy("llama")
    (model,) = make_subjects("hf", [path], ["toy"], device="cpu", dtype="float32")
    cell = Cell(7, 5, 3)
    sample = model.run(cell)
    per_token = kv_bytes_per_token(open_checkpoint(path).shape, bytes_per_element=4)
    # The last token is sampled but never fed back.
    assert sample.kv_bytes == cell.batch * (cell.input + cell.output - 1) * per_token
    assert model.weight_bytes == open_checkpoint(path).num_bytes
    assert sample.first > 0
    assert sample.rest > 0


def test_batch_ceiling_by_hand() -> None:
    assert batch_ceiling(1000, 300, 50) == 14
    assert batch_ceiling(200, 300, 50) == 0


@pytest.mark.parametrize(
    ("text", "value"), [("24GB", 24 * 10**9), ("512MB", 512 * 10**6), ("1.5g", 15 * 10**8), ("4096", 4096)]
)
def test_budgets_are_read(text: str, value: int) -> None:
    assert parse_bytes(text) == value


def test_grids_are_read_and_refused() -> None:
    assert parse_grid("8x4, 16x2", "1,3") == (Cell(8, 4, 1), Cell(8, 4, 3), Cell(16, 2, 1), Cell(16, 2, 3))
    for grid, batches in (("8", "1"), ("8x", "1"), ("8x4", "one"), ("0x4", "1"), ("8x1", "1"), ("8x4", "0")):
        with pytest.raises(MinitronError, match="grid"):
            parse_grid(grid, batches)


def test_what_is_longer_than_the_context_is_named() -> None:
    models = [subject("a", [], [], context=100), subject("b", [], [], context=10)]
    with pytest.raises(MinitronError, match=r"8x8 on b \(context 10\)"):
        measure(models, [Cell(8, 8, 1)], repeats=1, warmup=0, say=lambda text: None)


def test_an_engine_that_is_not_there(toy) -> None:
    with pytest.raises(MinitronError, match="no engine 'tgi'"):
        make_subjects("tgi", [toy("llama")], ["toy"], device="cpu", dtype="auto")
    with pytest.raises(MinitronError, match="not installed"):
        make_subjects("vllm", [toy("llama")], ["toy"], device="cpu", dtype="auto")


def test_a_dry_run_checks_what_the_run_checks(toy, tmp_path: Path) -> None:
    line = ["bench", str(toy("llama")), str(toy("llama", num_hidden_layers=2)), "--grid", "8x4,16x4", "--dry-run"]
    shown = CliRunner().invoke(app, [*line, "-o", str(tmp_path / "b")])
    assert shown.exception is None
    assert "2 models x 8x4 batch 1, 16x4 batch 1" in shown.stdout
    assert not (tmp_path / "b").exists()
    for wrong, told in [
        (["nowhere"], "nowhere is not a model directory"),
        (["--grid", "9000x9000"], "longer than the context"),
        (["--engine", "tgi"], "no engine 'tgi'"),
    ]:
        assert told in str(CliRunner().invoke(app, [*line, *wrong]).exception)


def test_the_command_writes_what_it_shows(toy, tmp_path: Path) -> None:
    big, small = str(toy("llama")), str(toy("llama", num_hidden_layers=2))
    line = ["bench", big, small, "--grid", "8x4", "--batch-sizes", "1,2", "--repeats", "2", "--device", "cpu"]
    line += ["--memory", "1MB", "-o", str(tmp_path / "bench.json")]
    shown = CliRunner().invoke(app, [*line, "--json"])
    assert shown.exception is None
    found = json.loads(shown.stdout)
    assert sealed(found) == json.loads((tmp_path / "bench.json").read_text())
    assert [(row["batch"], row["model"]) for row in found["rows"]] == [
        (batch, model["name"]) for batch in (1, 2) for model in found["models"]
    ]
    sizes = {model["name"]: model["weight_bytes"] for model in found["models"]}
    for row in found["rows"]:
        assert row["batch_ceiling"] == (10**6 - sizes[row["model"]]) // (row["kv_bytes"] // row["batch"])
    table = CliRunner().invoke(app, line)
    assert table.exception is None
    assert "8x4" in table.stdout


def test_a_cell_that_does_not_fit_in_memory_is_an_error() -> None:
    def run(cell: bench.Cell) -> bench.Sample:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 51200000000 bytes")

    subject = bench.Subject("m", "m", 1, 4, None, run)
    with pytest.raises(MinitronError, match="64x64 batch 9 does not fit in memory beside m"):
        bench.measure([subject], [bench.Cell(64, 64, 9)], repeats=1, warmup=0, say=print)


@pytest.mark.parametrize(
    "name", ["bamba", "falcon_h1", "granitemoehybrid", "nemotron_h", "lfm2", "qwen3_5_text", "qwen3_next"]
)
def test_the_cache_of_models_with_states_is_as_large_as_the_shape_says(toy, name: str) -> None:
    path = toy(name)
    (model,) = make_subjects("hf", [path], ["toy"], device="cpu", dtype="float32")
    cell, shape = Cell(7, 5, 3), open_checkpoint(path).shape
    # Convolutions keep as many inputs as they have taps, one more than they need.
    states = state_bytes(shape.with_(conv=shape["conv"] + 1), bytes_per_element=4)
    tokens = (cell.input + cell.output - 1) * kv_bytes_per_token(shape, bytes_per_element=4)
    assert model.run(cell).kv_bytes == cell.batch * (tokens + states)
