"""Options as a recipe writes them, as values of the dataclass that a verb is asked with."""

from collections.abc import Callable, Mapping
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from minitron_cli.spec.counts import parse_count


def typed_fields(request: Callable[..., Any], options: Mapping[str, object]) -> dict[str, Any]:
    """The options that are fields of a dataclass, or parameters of a function, in their types: {"seq-len": "4K"} ->
    {"seq_len": 4000}. As on a command line, the last of several values counts where one is taken. Text that is not a
    count is a MinitronError.
    """
    kinds = get_type_hints(request)
    named = {flag.replace("-", "_"): value for flag, value in options.items()}
    return {name: _typed(kinds[name], value) for name, value in named.items() if name in kinds}


def _typed(kind: Any, value: Any) -> Any:
    values = value if isinstance(value, tuple) else (value,)
    if get_origin(kind) is tuple:
        return tuple(map(get_args(kind)[0], values))
    (kind,) = [part for part in get_args(kind) or (kind,) if part is not NoneType]
    return parse_count(values[-1]) if kind is int else kind(values[-1])
