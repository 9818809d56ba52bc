"""A quantised teacher teaches what the plain one does; a quantised student is refused."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from minitron_cli.__main__ import run
from tests.training.runs import write_text

Toy = Callable[..., Path]


def test_a_student_of_a_quantised_teacher(
    toy: Toy, pair: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = write_text(tmp_path / "text.jsonl")
    line = ["--data", str(text), "--steps", "2", "--batch", "2", "--seq-len", "16"]
    for name in ("quantised", "plain"):
        teacher = str(pair("blocks") / name)
        assert run(["distill", str(toy("llama", seed=1)), "--teacher", teacher, *line, "-o", str(tmp_path / name)]) == 0
    found, expected = (load_file(tmp_path / name / "model.safetensors") for name in ("quantised", "plain"))
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    capsys.readouterr()
    student = str(pair("blocks") / "quantised")
    assert run(["distill", student, "--teacher", str(pair("blocks") / "plain"), *line, "-o", str(tmp_path / "x")]) == 1
    assert "--dequantize" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
