"""What all commands share: option names with their environment variables, numbers as people write them, output."""

import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from minitron_cli.checkpoint.atomic import MANIFEST
from minitron_cli.errors import MinitronError
from minitron_cli.spec import counts
from minitron_cli.spec.counts import bytes_text as bytes_text
from minitron_cli.spec.counts import count_text as count_text
from minitron_cli.spec.plain import json_text

_FIGURE = re.compile(r"[-+<±]?(\d|nan|inf)")


def option(*names: str, help: str, **settings: Any) -> Any:
    """A typer option whose default can come from MINITRON_<OPTION>, named after its (first) long name.

    A flag pair keeps typer's spelling: option("--tie/--no-tie") reads MINITRON_TIE.
    """
    long = next(name for name in names if name.startswith("--")).split("/")[0]
    variable = "MINITRON_" + long.removeprefix("--").replace("-", "_").upper()
    return typer.Option(*names, help=help, envvar=variable, show_envvar=False, **settings)


def argument(metavar: str, *, help: str, **settings: Any) -> Any:
    """A typer argument whose default can come from MINITRON_<METAVAR>."""
    variable = "MINITRON_" + metavar.upper()
    return typer.Argument(metavar=metavar, help=help, envvar=variable, show_envvar=False, **settings)


def examples(*lines: str) -> str:
    """The epilog of a command: worked examples, kept as they are typed."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


def _parsed(parse: Callable[[str | int], int]) -> Callable[[str | int], int]:
    """A parser of values whose errors are usage errors of the option."""

    def parsed(text: str | int) -> int:
        try:
            return parse(text)
        except MinitronError as error:
            raise typer.BadParameter(error.message) from error

    parsed.__name__ = parse.__name__
    return parsed


# A default comes as the int it is.
parse_count = _parsed(counts.parse_count)
parse_bytes = _parsed(counts.parse_bytes)


def require_model(model: str | None, verb: str) -> str:
    """The model argument, or the error that says how to give one."""
    if model:
        return model
    raise MinitronError(
        f"`minitron {verb}` needs a model",
        f"type `minitron {verb} MODEL ...` or `export MINITRON_MODEL=path/to/model` (a directory or a hub id)",
    )


def emit(result: Mapping[str, Any], as_json: bool, show: Callable[[], None]) -> None:
    """stdout is data: one JSON object with `--json`, otherwise whatever `show` prints."""
    if as_json:
        print(json_text(result))
    else:
        show()


def show_written(output: Path, models: Sequence[str]) -> None:
    """Say where the results of these models are, and how to see them in the report of the last that minitron made."""
    print(f"wrote {output}")
    if made := [model for model in models if (Path(model) / MANIFEST).is_file()]:
        print("next:", command_line("report", made[-1], "--results", output))


def is_first_process() -> bool:
    """Whether this process, of several under torchrun, is the one that prints the result."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def interruptible(text: str) -> Iterator[None]:
    """On Ctrl-C, say what has become of the work."""
    try:
        yield
    except KeyboardInterrupt:
        say(f"interrupted: {text}")
        raise


def command_line(*words: object) -> str:
    """A line to type, quoted for the shell; for `next:` and hints."""
    return shlex.join(["minitron", *map(str, words)])


def say(text: str) -> None:
    """Progress, plans and warnings go to stderr."""
    print(text, file=sys.stderr, flush=True)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str | None = None) -> None:
    """Print a table on stdout: text to the left, columns of figures to the right. Plain when piped.

    A column of which no row has anything is left out.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    grid = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    kept = [i for i in range(len(columns)) if not rows or any(row[i] for row in rows)]
    for i in kept:
        figures = i > 0 and all(_FIGURE.match(row[i]) for row in rows if row[i])
        grid.add_column(columns[i], justify="right" if figures else "left", overflow="fold")
    for row in rows:
        grid.add_row(*(row[i] for i in kept))
    # Piped output must not be folded at an imaginary terminal width.
    Console(width=None if sys.stdout.isatty() else 200, soft_wrap=False, highlight=False).print(grid)
