"""Progress of long work on stderr: a bar at a terminal, a plain line every few seconds elsewhere."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from minitron_cli.cli.common import bytes_text, count_text, say
from minitron_cli.pace import Pace


@contextmanager
def byte_progress(what: str) -> Iterator[Callable[[int, int, int], None]]:
    """Yield `report(bytes done, bytes in all, tokens so far)`."""
    if sys.stderr.isatty():
        with _bar(what) as report:
            yield report
    else:
        yield _lines(what)


@contextmanager
def _bar(what: str) -> Iterator[Callable[[int, int, int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    tokens_column = TextColumn("{task.fields[tokens]} tokens")
    with Progress(*columns, tokens_column, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=None, tokens="0")

        def report(done: int, total: int, tokens: int) -> None:
            bar.update(task, completed=done, total=total, tokens=count_text(tokens))

        yield report


def _lines(what: str) -> Callable[[int, int, int], None]:
    pace: Pace | None = None

    def report(done: int, total: int, tokens: int) -> None:
        nonlocal pace
        pace = pace or Pace(done)  # what an interrupted run had done already does not count for the rate
        if pace.due():
            amounts = f"{bytes_text(done)} of {bytes_text(total)}, {count_text(tokens)} tokens"
            say(f"{what}: {amounts}, {bytes_text(pace.rate(done))}/s  {pace.left(done, total)}")

    return report
