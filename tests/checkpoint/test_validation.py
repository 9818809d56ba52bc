"""transformers is asked without torch, in another process: the answers must be those that it gives with torch."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from minitron_cli.checkpoint import validation
from minitron_cli.checkpoint.reader import load_config
from minitron_cli.checkpoint.validation import Rejected, understood
from tests.toys import TOY_CONFIGS

Toy = Callable[..., Path]

QUICK = ("llama", "gemma3_text")  # each starts a process that imports transformers


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process that has not imported transformers, and does not."""
    monkeypatch.delitem(sys.modules, "transformers", raising=False)
    monkeypatch.setattr(validation, "_understood_here", lambda config: {"asked": "here"})


@pytest.mark.parametrize(
    "model_type", [pytest.param(t, marks=() if t in QUICK else pytest.mark.slow) for t in TOY_CONFIGS]
)
def test_a_config_is_understood_alike_without_torch(model_type: str, toy: Toy, request: pytest.FixtureRequest) -> None:
    config = load_config(toy(model_type))
    here = json.loads(json.dumps(understood(config), default=str))
    request.getfixturevalue("fresh")
    assert understood(config) == here


@pytest.mark.parametrize("change", [{"hidden_size": 37}, {"num_hidden_layers": "three"}, {"model_type": "lama"}])
def test_a_config_is_rejected_alike_without_torch(
    change: dict[str, Any], toy: Toy, request: pytest.FixtureRequest
) -> None:
    config = {**load_config(toy("llama")), **change}
    with pytest.raises(Rejected) as here:
        understood(config)
    request.getfixturevalue("fresh")
    with pytest.raises(Rejected) as elsewhere:
        understood(config)
    assert str(elsewhere.value) == str(here.value) != ""


@pytest.mark.parametrize("program", [None, "/bin/false"])
def test_where_no_answer_comes_it_is_asked_here(
    program: str | None, fresh: None, toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", program)
    assert understood(load_config(toy("llama"))) == {"asked": "here"}


@pytest.mark.parametrize("cut", ["--drop-layers=0", "--hidden=36"])
def test_a_prune_imports_neither_torch_nor_transformers(cut: str, toy: Toy, tmp_path: Path) -> None:
    from tests.cli.test_prune import scores_for

    scores = scores_for(toy("llama"), tmp_path / "scores.safetensors")
    program = (
        "import sys; from minitron_cli.__main__ import run; code = run(sys.argv[1:]);"
        "sys.exit(code or bool({'torch', 'transformers'} & {*sys.modules}))"
    )
    line = ["prune", str(toy("llama")), cut, "--scores", str(scores), "-o", str(tmp_path / "small")]
    done = subprocess.run([sys.executable, "-c", program, *line], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "small" / "minitron.json").is_file()
