"""Which values an option may take, declared beside the field of a dataclass.

    lr: Annotated[float, above(0)] = 1e-4
    schedule: Annotated[str, OneOf(("cosine", "linear"))] = "cosine"

None means "not given" and passes; a tuple passes when every element does.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from minitron_cli.errors import MinitronError


@dataclass(frozen=True, slots=True)
class Within:
    """A number between `low` and `high`; `open_low` and `open_high` leave out the ends. NaN is never within."""

    low: float
    high: float = math.inf
    open_low: bool = False
    open_high: bool = True

    def demand(self, value: float) -> str | None:
        """The bound that a value violates, in words ("at least 1"); None where it is within."""
        if not (value > self.low if self.open_low else value >= self.low):
            return f"{'above' if self.open_low else 'at least'} {self.low:g}"
        if not (value < self.high if self.open_high else value <= self.high):
            return "finite" if self.high == math.inf else f"{'below' if self.open_high else 'at most'} {self.high:,}"
        return None


@dataclass(frozen=True, slots=True)
class OneOf:
    """One of a few words."""

    values: tuple[str, ...]

    def demand(self, value: Any) -> str | None:
        """The allowed words, for a value that is none of them."""
        return None if value in self.values else f"one of {', '.join(self.values)}"


def above(low: float) -> Within:
    """A finite number above `low`."""
    return Within(low, open_low=True)


def count(low: int = 1, high: int = 10**15) -> Within:
    """A whole number from `low` to `high`, by default an end that no machine reaches."""
    return Within(low, high, open_high=False)


SEED = count(0, 2**32 - 1)


def flag(field: str) -> str:
    """`min_lr` -> `--min-lr`."""
    return "--" + field.replace("_", "-")


def require(options: Any, verb: str, name_of: Callable[[str], str] = flag) -> None:
    """Raise MinitronError where options of a verb break their limits, naming all that do."""
    if wrong := violations(options, name_of):
        raise MinitronError("; ".join(wrong), f"see `minitron {verb} --help`")


def violations(options: Any, name_of: Callable[[str], str]) -> list[str]:
    """What is wrong with each field of a dataclass whose value breaks its limit or its type, in the fields' order.

    `name_of` turns a field's name into the one that the user knows.
    """
    hints = get_type_hints(type(options), include_extras=True)
    found = []
    for field in fields(options):
        value = getattr(options, field.name)
        for part in value if isinstance(value, tuple) else (value,):
            fault = None if part is None else _fault(hints[field.name], part)
            if fault is not None:
                found.append(f"{name_of(field.name)} must be {fault}; got {value!r}")
                break
    return found


def _fault(hint: Any, value: Any) -> str | None:
    """What the annotation demands and `value` is not, in words; None where it is."""
    limits = [limit for limit in getattr(hint, "__metadata__", ()) if isinstance(limit, Within | OneOf)]
    number = _number(hint)
    if number is int and not (isinstance(value, int) and not isinstance(value, bool)):
        return "a whole number"
    if number is float and not (isinstance(value, int | float) and not isinstance(value, bool)):
        return "a number"
    return next((demand for limit in limits if (demand := limit.demand(value)) is not None), None)


def _number(hint: Any) -> type | None:
    """int or float where an annotation says that the value, or each element of a tuple, is one."""
    if get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    if get_origin(hint) in (Union, UnionType):
        hint = next(part for part in get_args(hint) if part is not NoneType)
    if get_origin(hint) is tuple:
        hint = get_args(hint)[0]
    return hint if hint in (int, float) else None
