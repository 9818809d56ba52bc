"""Every family leaves the trainer under the names and in the types it came with."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from minitron_cli.training.export import export_dtype
from tests.toys import TOY_CONFIGS, make_toy
from tests.training.runs import check_export


@pytest.mark.parametrize("model_type", TOY_CONFIGS)
def test_an_untrained_student_is_exported_as_it_was(model_type: str, tmp_path: Path) -> None:
    """Names, shapes, types and bits: what loading renames and fuses, saving undoes."""
    source, out = make_toy(model_type, tmp_path / "source", dtype=torch.bfloat16), tmp_path / "out"
    check_export(source, out)


def test_another_type_on_request(toy: Callable[..., Path]) -> None:
    assert export_dtype(toy("llama"), None) == torch.float32
    assert export_dtype(toy("llama"), "bfloat16") == torch.bfloat16
