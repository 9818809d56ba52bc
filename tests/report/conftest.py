"""The run and its page are made once for all tests that only read them."""

from pathlib import Path

import pytest

from minitron_cli.report.write import report
from tests.report.fake_run import write_run
from tests.report.reading import Page


@pytest.fixture(scope="session")
def fake_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with its report in it. Do not write into it."""
    directory = write_run(tmp_path_factory.mktemp("runs") / "fake")
    report(directory)
    return directory


@pytest.fixture(scope="session")
def page(fake_run: Path) -> Page:
    """The finished run's page, read."""
    return Page((fake_run / "report.html").read_text())
