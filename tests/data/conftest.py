"""Tokenizers and token files that several data tests read."""

from collections.abc import Callable
from pathlib import Path

import pytest

from minitron_cli.data.prepare import token_files
from minitron_cli.data.source import parse_sources
from minitron_cli.data.tokens import TokenFile
from tests.data.corpora import byte_level, documents, write_jsonl


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return byte_level(tmp_path_factory.mktemp("byte-level"))


@pytest.fixture
def make_file(tmp_path: Path, tokenizer_dir: Path) -> Callable[..., TokenFile]:
    """make_file(name, documents, **options of token_files) -> the token file of a .jsonl of that many documents."""

    def make(name: str, count: int, seed: int = 0, **options: str) -> TokenFile:
        source = write_jsonl(tmp_path / f"{name}.jsonl", documents(count, seed))
        return token_files(parse_sources([str(source)]), tokenizer_dir, **options)[0]

    return make
