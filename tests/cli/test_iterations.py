"""`prune --iterations`: the result is cut from the source by one plan; one iteration is plain pruning."""

import json
from pathlib import Path

import numpy as np
import pytest

from minitron_cli.__main__ import run
from minitron_cli.checkpoint.provenance import file_digest, read_plan


@pytest.fixture
def text(tmp_path: Path) -> str:
    rng = np.random.default_rng(0)
    lines = ["".join(rng.choice(list("abc de"), 200)) for _ in range(40)]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    return str(tmp_path / "text.jsonl")


def _prune(model: Path, text: str, output: Path, *words: str) -> Path:
    line = ["prune", str(model), "--data", text, "--samples", "16", "--seq-len", "32", "-o", str(output), *words]
    assert run(line) == 0
    return output


def test_two_iterations_cut_the_source_by_one_plan(toy, text: str, tmp_path: Path) -> None:
    sizes = ["--ffn", "40", "--layers", "1"]
    twice = _prune(toy("llama"), text, tmp_path / "twice", *sizes, "--iterations", "2")
    plan = read_plan(twice)
    assert plan is not None
    assert plan.source["layer"] == 3
    assert plan.target["ffn"] == 40
    assert json.loads((twice / "minitron.json").read_text())["options"]["iterations"] == 2
    assert run(["verify", str(twice), "--source", str(toy("llama"))]) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["text.jsonl", "twice"], "nothing is left of the way"


def test_one_iteration_is_plain_pruning(toy, text: str, tmp_path: Path) -> None:
    plain = _prune(toy("llama"), text, tmp_path / "plain", "--ffn", "40")
    once = _prune(toy("llama"), text, tmp_path / "once", "--ffn", "40", "--iterations", "1")
    assert file_digest(plain / "model.safetensors") == file_digest(once / "model.safetensors")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--ffn", "40", "--iterations", "2"], "takes no --scores and needs --data"),
        (["--drop-layers", "1", "--data", "x", "--iterations", "2"], "does not go with --drop-layers"),
    ],
)
def test_bad_input(words: list[str], message: str, toy, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["prune", str(toy("llama")), "-o", str(tmp_path / "x"), *words]) == 1
    assert message in capsys.readouterr().err
