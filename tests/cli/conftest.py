"""The command line, run in this process: exit code, stdout and stderr."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from minitron_cli.__main__ import run


@dataclass(frozen=True, slots=True)
class Result:
    code: int
    out: str
    err: str


@pytest.fixture
def minitron(capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """minitron("prune", path, "--hidden", 36) -> Result."""

    def call(*arguments: object) -> Result:
        capsys.readouterr()
        code = run([str(a) for a in arguments])
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return call
