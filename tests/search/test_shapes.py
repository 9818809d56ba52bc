"""Shapes that cannot be built are left out with a reason, and every axis is weighed by a cut that can be."""

from collections.abc import Callable
from pathlib import Path

import pytest

from minitron_cli.checkpoint.hfconfig import config_for, validate_config
from minitron_cli.checkpoint.reader import open_checkpoint
from minitron_cli.checkpoint.scores_file import write_scores
from minitron_cli.errors import MinitronError
from minitron_cli.families import family_of
from minitron_cli.search.cost import cost
from minitron_cli.search.flags import search_request
from minitron_cli.search.shapes import accepted, single_cuts
from minitron_cli.spec.scores import Scores
from minitron_cli.spec.search import Window, candidates, default_grid
from minitron_cli.spec.shape import check_target, shape_of
from tests.toys import TOY_CONFIGS, toy_values


@pytest.mark.parametrize("name", [n for n in TOY_CONFIGS if "hidden" not in family_of(n).refuses])
def test_hidden_sizes_of_the_default_grid_are_multiples_of_the_heads(name: str) -> None:
    config = toy_values(name)
    shape = shape_of(family_of(name), config)
    assert all(size % shape["head"] == 0 for size in default_grid(shape)["hidden"])


def test_what_transformers_rejects_is_left_out_and_named(toy: Callable[..., Path]) -> None:
    source, said = open_checkpoint(toy("llama")), list[str]()
    grid = {"hidden": [36, 40, 42], "layer": [2, 3]}
    found = candidates(source.family, source.config, source.shape, grid, Window(0, float("inf")))
    kept = accepted(source, found, said.append)
    assert {c.shape["hidden"] for c in found} == {36, 40, 42}
    assert {c.shape["hidden"] for c in kept} == {36, 42}, "six heads"
    assert [line.split(":")[0] for line in said] == ["2 shapes left out, which transformers rejects"]
    only = [c for c in found if c.shape["hidden"] == 40]
    with pytest.raises(MinitronError, match="rejects every shape in the budget"):
        accepted(source, only, said.append)


def test_experts_that_cannot_run_are_left_out(toy: Callable[..., Path]) -> None:
    """Transformers' grouped product of experts in float32 takes rows of 4 values."""
    source, said = open_checkpoint(toy("mixtral")), list[str]()
    grid = {"expert_ffn": [16, 18, 20]}
    found = candidates(source.family, source.config, source.shape, grid, Window(0, float("inf")))
    assert {c.shape["expert_ffn"] for c in accepted(source, found, said.append)} == {16, 20}
    assert "--expert-ffn 18: the experts' matrix product runs on multiples of 4 only" in said[0]


@pytest.mark.parametrize(
    ("family", "grid"),
    [
        ("llama", {"hidden": [36, 42], "ffn": [40, 88], "head": [2, 4], "layer": [2, 3]}),
        ("gpt_neox", {"hidden": [24, 32], "head": [3, 4], "kv": [3, 4], "layer": [2, 3]}),
        ("mixtral", {"expert": [3, 4, 5], "expert_ffn": [16, 24], "hidden": [36, 42]}),
        ("qwen2_moe", {"shared_ffn": [24, 32], "expert_ffn": [16, 24]}),
        ("gemma2", {"hidden": [36, 42], "layer": [2, 3]}),
    ],
)
def test_every_axis_is_weighed_by_a_cut_that_can_be_built(
    family: str, grid: dict[str, list[int]], toy: Callable[..., Path]
) -> None:
    source = open_checkpoint(toy(family))
    grid = {axis: sizes for axis, sizes in grid.items() if axis in source.shape}
    shapes = [c.shape for c in candidates(source.family, source.config, source.shape, grid, Window(0, float("inf")))]
    assert shapes
    cuts = single_cuts(source, shapes)
    touched = {axis for cut in cuts for axis in cut if cut[axis] != source.shape[axis]}
    assert touched >= {axis for shape in shapes for axis in shape if shape[axis] != source.shape[axis]} - {"kv"}
    for cut in cuts:
        check_target(source.family, source.shape, cut)
        validate_config(config_for(source.config, source.family, cut.with_(layer=source.shape["layer"])))


def test_a_budget_that_nothing_fits_is_said_plainly(toy, capsys: pytest.CaptureFixture[str]) -> None:
    from minitron_cli.__main__ import run

    assert run(["search", str(toy("llama")), "--memory", "1", "--list"]) == 1
    assert "error: no shape on the grid fits the budget" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("olmoe", ["--ffn-factors", "2"], "olmoe models have no --ffn"),
        ("llama", ["--ffn-factors", "2", "--grid", "ffn=32,64"], "--ffn-factors and --grid ffn=... both choose --ffn"),
    ],
)
def test_factors_of_a_width_that_is_not_free_are_refused(
    toy, name: str, given: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from minitron_cli.__main__ import run

    assert run(["search", str(toy(name)), "--params", "10K", "--list", *given]) == 1
    assert f"error: {message}" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["qwen3_5_text", "gemma4_text", "lfm2", "nemotron_h", "glm4_moe"])
def test_what_a_search_takes_is_known_where_layers_of_several_kinds_go(
    toy: Callable[..., Path], tmp_path: Path, name: str
) -> None:
    source = open_checkpoint(toy(name))
    scores = tmp_path / "scores.safetensors"
    write_scores(scores, Scores({}, {}))
    layers = source.shape["layer"] - 1
    text = tmp_path / "text.jsonl"
    text.write_text('{"text": "once"}\n')
    request = search_request(
        str(source.path), speedup=1.0, grid=(f"layers={layers}",), scores=scores, data=(str(text),),
        bench_grid="8x8", output=tmp_path / "out",
    )  # fmt: skip
    assert cost(request)["memory_bytes"] > 0
