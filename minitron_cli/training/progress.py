"""What a user sees while a run goes on: a bar on a terminal, else a plain line every few seconds. All on stderr."""

import sys
from collections.abc import Mapping
from typing import Any

from minitron_cli.pace import Pace


class Display:
    """Shows steps as they finish; a `quiet` one (every rank but the first) shows nothing."""

    def __init__(self, total: int, done: int, quiet: bool = False) -> None:
        self._total, self._quiet, self._pace = total, quiet, Pace(done)
        self._bar: Any = None if quiet or not sys.stderr.isatty() else _bar(total, done)

    def say(self, text: str) -> None:
        """A line above the bar."""
        if self._bar is not None:
            self._bar.console.print(text, highlight=False, markup=False)
        elif not self._quiet:
            print(text, file=sys.stderr, flush=True)

    def step(self, step: int, values: Mapping[str, float], tokens_per_second: float) -> None:
        """One finished step; `values` are the loss terms and gradient norm."""
        if self._quiet:
            return
        terms = "  ".join(f"{name} {values[name]:z.4f}" for name in _shown(values))
        text = f"{terms}  {tokens_per_second:,.0f} tokens/s"
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=step, text=text)
            return
        if self._pace.due() or step == self._total:
            self.say(f"step {step}/{self._total}  {text}  {self._pace.left(step, self._total)}")

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._bar is not None:
            self._bar.stop()


def _shown(values: Mapping[str, float]) -> list[str]:
    """The loss terms; the total only where it is not the one term there is."""
    terms = [name for name in values if name not in ("loss", "grad_norm", "lr")]
    return (["loss"] if len(terms) > 1 else []) + terms


def _bar(total: int, done: int) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[text]}"), TimeRemainingColumn())
    bar = Progress(*columns, console=Console(stderr=True))
    bar.add_task("", total=total, completed=done, text="")
    bar.start()
    return bar
