"""No verb ever writes over what it reads: an output that is, contains or is inside an input is refused by every one."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from minitron_cli.checkpoint.atomic import MANIFEST
from minitron_cli.checkpoint.scores_file import write_scores
from tests.cli.conftest import Result
from tests.prune.cutting import random_scores
from tests.training.runs import write_text

Toy = Callable[..., Path]
Minitron = Callable[..., Result]

RECIPE = """
about: a step that reads what is given
inputs:
  model: {about: a model}
steps:
  cut:
    verb: prune
    inputs: {model: "{model}"}
    options: {drop-layers: "0"}
"""


@pytest.fixture(scope="module")
def world(toy: Toy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, data, tasks and scores, all in directories that carry our manifest and so could be replaced."""
    from minitron_cli.checkpoint.reader import open_checkpoint

    place = tmp_path_factory.mktemp("world")
    for name in ("all/model", "all/teacher"):
        shutil.copytree(toy("llama"), place / name)
        (place / name / MANIFEST).write_text('{"verb": "prune", "options": {}, "inputs": {}, "lineage": []}')
    for name in ("text", "tasks", "measured", "plain.moments"):
        (place / name).mkdir()
    for name in ("text", "tasks", "measured"):
        (place / name / MANIFEST).write_text("{}")
    (place / "all" / MANIFEST).write_text("{}")
    write_text(place / "text" / "text.jsonl")
    write_text(place / "plain.moments" / "text.jsonl")
    (place / "tasks" / "mine.yaml").write_text("task: mine\n")
    write_scores(place / "measured" / "s.safetensors", random_scores(open_checkpoint(toy("llama")).shape))
    (place / "recipe.yaml").write_text(RECIPE)
    return place


MODEL, TEXT = "all/model", "text/text.jsonl"
DISTILL = f"distill {MODEL} --teacher all/teacher --data {TEXT} --steps 1 --device cpu --overwrite"
SEARCH = f"search {MODEL} --params 20K --scores measured/s.safetensors --data {TEXT}"
LINES = [
    (f"prune {MODEL} --drop-layers 0 --overwrite -o {MODEL}", "is the input"),
    (f"prune {MODEL} --drop-layers 0 --overwrite -o all", "contains the input"),
    (f"prune {MODEL} --drop-layers 0 --dry-run --overwrite -o all", "contains the input"),
    (f"prune {MODEL} --drop-layers 0 -o {MODEL}/small", "is inside the input"),
    (f"prune {MODEL} --hidden 36 --scores measured/s.safetensors --overwrite -o measured", "contains the input"),
    (f"prune {MODEL} --hidden 36 --data {TEXT} --overwrite -o text", "contains the input"),
    (f"{DISTILL} -o {MODEL}", "is the input"),
    (f"{DISTILL} -o all/teacher", "is the input"),
    (f"{DISTILL} -o all", "contains the input"),
    (f"{DISTILL} -o text", "contains the input"),
    (f"{DISTILL} -o out --record-teacher all/teacher --top-k 8", "is the input"),
    (f"train {MODEL} --data {TEXT} --steps 1 --device cpu --overwrite -o {MODEL}", "is the input"),
    (f"importance {MODEL} --data {TEXT} --force -o {TEXT}", "is the input"),
    (f"importance {MODEL} --data {TEXT} -o {MODEL}/scores.safetensors", "is inside the input"),
    (f"importance {MODEL} --data {TEXT} -o {MODEL}/scores.safetensors --dry-run", "is inside the input"),
    (f"importance {MODEL} --data plain.moments/text.jsonl --second-moments -o plain.safetensors", "contains the input"),
    (f"eval {MODEL} --data {TEXT} -o {TEXT}", "is the input"),
    (f"eval {MODEL} --data {TEXT} -o {MODEL}/config.json", "is inside the input"),
    (f"eval {MODEL} --data {TEXT} --dry-run -o {MODEL}/results.json", "is inside the input"),
    (f"eval {MODEL} --tasks mine --include tasks -o tasks/mine.yaml", "is the input"),
    (f"bench {MODEL} -o {MODEL}/model.safetensors", "is inside the input"),
    (f"{SEARCH} -o {MODEL}", "is the input"),
    (f"{SEARCH} -o measured", "contains the input"),
    (f"{SEARCH} --dry-run -o {MODEL}/search", "is inside the input"),
    (f"data tokenize {TEXT} --tokenizer {MODEL} --overwrite -o text", "contains the input"),
    (f"data tokenize {TEXT} --tokenizer {MODEL} --overwrite -o {MODEL}", "is the input"),
    (f"data tokenize plain.moments --tokenizer {MODEL} -o plain.moments/tokens", "is inside the input"),
    (f"run recipe.yaml --set model={MODEL}/ -o {MODEL}", "is inside the input"),
    (f"run recipe.yaml --set model={MODEL} -o {MODEL} --dry-run", "is inside the input"),
    ("report all/model -o all/model/config.json", "is not a report of minitron"),
]


def contents(place: Path) -> dict[str, bytes]:
    return {str(f.relative_to(place)): f.read_bytes() for f in sorted(place.rglob("*")) if f.is_file()}


@pytest.mark.parametrize(("line", "message"), LINES)
def test_an_output_never_touches_an_input(
    line: str, message: str, world: Path, minitron: Minitron, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(world)
    before = contents(world)
    result = minitron(*line.split())
    assert result.code == 1, result
    assert message in result.err
    assert "hint: " in result.err
    assert contents(world) == before


OBJECTS = [
    f"prune {MODEL} --drop-layers 0 -o s3://bucket/out",
    f"prune {MODEL} --drop-layers 0 --dry-run -o s3://bucket/out",
    f"{DISTILL} -o s3://bucket/out",
    f"{DISTILL} --dry-run -o gs://bucket/out",
    f"{DISTILL} -o out --record-teacher s3://bucket/said --top-k 8",
    f"train {MODEL} --data {TEXT} --steps 1 --device cpu -o hf://buckets/out",
    f"importance {MODEL} --data {TEXT} -o s3://bucket/s.safetensors",
    f"eval {MODEL} --data {TEXT} -o s3://bucket/results.json",
    f"bench {MODEL} -o s3://bucket/bench.json",
    f"{SEARCH} --dry-run -o s3://bucket/out",
    f"data tokenize {TEXT} --tokenizer {MODEL} -o abfs://bucket/out",
    f"run recipe.yaml --set model={MODEL} -o s3://bucket/out --dry-run",
    "report all/model -o s3://bucket/page.html",
    "toy s3://bucket/out",
]


@pytest.mark.parametrize("line", OBJECTS)
def test_object_storage_is_refused_in_words(
    line: str, world: Path, minitron: Minitron, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path of such a name would make a directory that is called `s3:`."""
    monkeypatch.chdir(world)
    before = contents(world)
    result = minitron(*line.split())
    assert result.code == 1, result
    assert "is an address, and results are written to file systems only" in result.err
    assert "hint: write to a directory" in result.err
    assert contents(world) == before
    assert not any(path.name.endswith(":") for path in world.iterdir())
