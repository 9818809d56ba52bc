"""Session fixtures: toy checkpoints are made once, the real checkpoint is used by path where it is there."""

import os
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

from tests.quantising import OSS, QUANTISED
from tests.toys import make_toy

torch.set_num_threads(1)  # the toys are smaller than the cost of a thread pool; xdist uses the cores

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real checkpoint and text beside the project, or a skip that says so."""
    if not (SHARED_DATA / "stories260K" / "config.json").is_file():
        pytest.skip(f"no real checkpoint at {SHARED_DATA}")
    return SHARED_DATA


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """toy("llama", **overrides) -> directory of a toy checkpoint, made once a session. Do not write into it."""
    made: dict[str, Path] = {}

    def get(model_type: str, **overrides: object) -> Path:
        key = repr((model_type, sorted(overrides.items(), key=lambda item: item[0])))
        if key not in made:
            made[key] = make_toy(model_type, tmp_path_factory.mktemp(model_type), **overrides)
        return made[key]

    return get


@pytest.fixture(scope="session")
def pair(toy: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """pair("blocks") -> a directory: a toy that is `quantised`, and its values, `plain`. Do not write into it."""
    made: dict[str, Path] = {}

    def get(case: str) -> Path:
        if case not in made:
            model_type, quantise = QUANTISED[case]
            source = toy(model_type, **(OSS if model_type == "gpt_oss" else {}))
            made[case] = quantise(source, tmp_path_factory.mktemp("quantised"))
        return made[case]

    return get


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No MINITRON_* variable of the caller may reach a test, and caches are the session's own."""
    for name in [name for name in os.environ if name.startswith("MINITRON_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MINITRON_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
