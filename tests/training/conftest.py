"""Fixtures of the trainer's tests."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.training.runs import write_text


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A jsonl to train on."""
    return write_text(tmp_path_factory.mktemp("text") / "text.jsonl")


@pytest.fixture(scope="module")
def teacher(toy: Callable[..., Path]) -> Path:
    """A Llama a little wider than the students."""
    return toy("llama", hidden_size=66, seed=5)
