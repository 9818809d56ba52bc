"""A family.json that something else wrote is named, not a traceback."""

import json
from pathlib import Path

import pytest

from minitron_cli.__main__ import run


@pytest.mark.parametrize("found", [{}, {"recipe": 3}, {"steps": 3}, {"steps": [{}]}, {"models": [1], "steps": []}])
def test_a_damaged_family_is_named(found: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "family.json").write_text(json.dumps(found))
    assert run(["report", str(tmp_path)]) == 1
    assert "family.json" in capsys.readouterr().err
