"""Commands made of tables of options. The tables hold names, types and words; defaults are those of the verb's request.

`None` means "not typed". A command's module has NAME, EXAMPLES, PANELS, `command` and `defaults`.
"""

from collections.abc import Callable, Mapping, Sequence
from inspect import Parameter, Signature, signature
from typing import Annotated, Any

import typer

from minitron_cli.cli.common import argument, option, parse_count

Table = tuple[Parameter, ...]


def flag(
    name: str, kind: Any, help: str, *spelled: str, negatable: bool = False, default: Any = None, **settings: Any
) -> Parameter:
    """An option of a type, spelled as its name unless otherwise; `negatable` adds --no-NAME; `settings` are typer's."""
    own = f"--{name.replace('_', '-')}"
    spelled = spelled or (f"{own}/--no-{own.removeprefix('--')}" if negatable else own,)
    if kind is bool and not negatable:
        default = False
    annotation = Annotated[kind | None, option(*spelled, help=help, **settings)]
    return Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def counted(name: str, help: str, *spelled: str) -> Parameter:
    """An option of a whole number as people write it: 4K, 1.5B."""
    return flag(name, int, help, *spelled, parser=parse_count)


def positional(name: str, kind: Any, metavar: str, help: str) -> Parameter:
    """An argument; None where it is not given, for an error that says how to give it."""
    annotation = Annotated[kind | None, argument(metavar, help=help)]
    return Parameter(name, Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def model(metavar: str = "MODEL", help: str = "a model directory or a hub id") -> Parameter:
    """The model that a verb is about."""
    return positional("model", str, metavar, help)


MODELS = positional("models", list[str], "MODEL", "model directories or hub ids")
OVERWRITE = flag("overwrite", bool, "replace an output that minitron made")
DRY_RUN = flag("dry_run", bool, "only say what would be done")
AS_JSON = flag("as_json", bool, "one JSON object on stdout", "--json")


def names(panels: Mapping[str, Table]) -> dict[str, tuple[str, ...]]:
    """The groups of a help as `help.grouped` takes them."""
    return {title: tuple(p.name for p in table) for title, table in panels.items()}


def joined(first: Table, panels: Mapping[str, Table]) -> Table:
    """All parameters of a command, in the order of its help."""
    return (*first, *(p for table in panels.values() for p in table))


def typed(given: Mapping[str, Any], *without: str) -> dict[str, Any]:
    """What was typed, but for the options `without`: those of a request, by its fields; repeated ones as tuples."""
    found = {name: value for name, value in given.items() if value is not None and name not in without}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}


def defaults_of(request: Any) -> dict[str, Any]:
    """The defaults that a help shows, of a request's fields or a function's parameters: not "none", "no", "chosen"."""
    known = {name: p.default for name, p in signature(request).parameters.items() if p.default is not Parameter.empty}
    return {name: value for name, value in known.items() if value is not None and value is not False and value != ()}


def command_of(parameters: Sequence[Parameter], about: str, act: Callable[[Mapping[str, Any]], int | None]) -> Any:
    """A typer command with these parameters and help text, that exits with what `act` returns for them."""

    def command(**given: Any) -> None:
        raise typer.Exit(act(given) or 0)

    command.__doc__ = about
    command.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    return command
