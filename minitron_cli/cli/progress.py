"""Progress of long work on stderr: a bar at a terminal, a plain line every few seconds elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from minitron_cli.cli.common import bytes_text, count_text, say

_SECONDS_PER_LINE = 5.0


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
    started = last = time.monotonic()
    first: int | None = None  # what an interrupted run had done already does not count for the rate

    def report(done: int, total: int, tokens: int) -> None:
        nonlocal last, first
        first = done if first is None else first
        now = time.monotonic()
        if now - last < _SECONDS_PER_LINE:
            return
        last = now
        rate = (done - first) / (now - started)
        left = f", {(total - done) / rate:.0f} s left" if rate else ""
        amounts = f"{bytes_text(done)} of {bytes_text(total)}, {count_text(tokens)} tokens"
        say(f"{what}: {amounts}, {bytes_text(rate)}/s{left}")

    return report
