"""The help of a command: the options that most people need first, the others in named groups."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from typer.core import TyperCommand

Panels = Mapping[str, Sequence[str]]  # title -> names of parameters, in the order of the help
_KIND = re.compile(r"<list\[(\w+)\]>|<(\w+) range>")  # how typer spells that an option is repeatable, or limited


def grouped(panels: Panels, defaults: Callable[[], Mapping[str, Any]] = dict) -> type[TyperCommand]:
    """A command class whose help lists the parameters of `panels` under their titles, the others before them.

    `defaults` are values that the signature does not show, by parameter; they are asked for when help is printed.
    """

    class Grouped(TyperCommand):
        def format_options(self, ctx: Any, formatter: Any) -> None:
            title_of = {name: title for title, names in panels.items() for name in names}
            known = {parameter.name for parameter in self.get_params(ctx)}
            assert title_of.keys() <= known, f"no parameters: {sorted(title_of.keys() - known)}"
            sections: dict[str, list[tuple[str, str]]] = {title: [] for title in ("Arguments", "Options", *panels)}
            shown = defaults()
            for parameter in self.get_params(ctx):
                record = parameter.get_help_record(ctx)
                if record is None:
                    continue
                flags, text = _KIND.sub(_kind, record[0]), record[1]
                if shown.get(str(parameter.name)) is not None and "[default" not in text:
                    text += f"  [default: {_text(shown[str(parameter.name)])}]"
                kind = "Arguments" if parameter.param_type_name == "argument" else "Options"
                sections[title_of.get(str(parameter.name), kind)].append((flags, text))
            for title, rows in sections.items():
                if rows:
                    with formatter.section(title):
                        formatter.write_dl(rows)

    return Grouped


def _kind(found: re.Match[str]) -> str:
    """<list[Path]> -> <path>..., <int range> -> <int>."""
    return f"<{found[1].lower()}>..." if found[1] else f"<{found[2]}>"


def _text(value: Any) -> str:
    if value is True:
        return "yes"
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
