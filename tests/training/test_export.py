"""Every family leaves the trainer under the names and in the types it came with."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from minitron_cli.training.export import Origin, export_dtype, gather, write_model
from minitron_cli.training.load import load_student
from minitron_cli.training.step import kd_step
from tests.toys import TOY_CONFIGS, make_toy


def stored(directory: Path) -> dict[str, torch.Tensor]:
    return {name: t for file in directory.glob("*.safetensors") for name, t in load_file(file).items()}


@pytest.mark.parametrize("model_type", TOY_CONFIGS)
def test_an_untrained_student_is_exported_as_it_was(model_type: str, tmp_path: Path) -> None:
    """Names, shapes, types and bits: what loading renames and fuses, saving undoes."""
    source, out = make_toy(model_type, tmp_path / "source", dtype=torch.bfloat16), tmp_path / "out"
    step = kd_step(load_student(source, from_scratch=False, seed=0))
    dtype = export_dtype(source, None)
    assert dtype == torch.bfloat16
    out.mkdir()
    write_model(out, Origin(source, source), gather(step, dtype, rank=0), dtype)
    before, after = stored(source), stored(out)
    assert after.keys() == before.keys()
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
    assert {name: t.dtype for name, t in after.items()} == {name: t.dtype for name, t in before.items()}


def test_another_type_on_request(toy: Callable[..., Path]) -> None:
    assert export_dtype(toy("llama"), None) == torch.float32
    assert export_dtype(toy("llama"), "bfloat16") == torch.bfloat16
