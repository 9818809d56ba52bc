"""Results that are kept: found for what they follow from, made anew for anything else."""

import json
from pathlib import Path

import pytest

from minitron_cli.checkpoint.kept import kept


def test_a_result_is_made_once_for_what_it_follows_from(tmp_path: Path) -> None:
    file, made = tmp_path / "below" / "kept.json", iter([[1.5, 0.1], [2.0], [3.0]])

    def make() -> list[float]:
        return next(made)

    assert kept(file, {"files": ("a", "b")}, make) == ([1.5, 0.1], False)
    assert kept(file, {"files": ("a", "b")}, make) == ([1.5, 0.1], True)
    assert kept(file, {"files": ("a",)}, make) == ([2.0], False)
    assert kept(file, {"files": ("a",)}, make) == ([2.0], True)


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"identity": {"a": 1}}', '{"result": 7}'])
def test_a_file_that_holds_no_result_counts_as_absent(content: str, tmp_path: Path) -> None:
    file = tmp_path / "kept.json"
    file.write_text(content)
    assert kept(file, {"a": 1}, lambda: 5) == (5, False)
    assert json.loads(file.read_text()) == {"identity": {"a": 1}, "result": 5}
