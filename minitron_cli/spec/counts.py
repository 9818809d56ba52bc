"""Counts as people write them: "4.5B", "300M", "1_000", "2e9"."""

import re
from collections.abc import Iterable
from decimal import Decimal, InvalidOperation

from minitron_cli.errors import MinitronError

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
_LARGEST = 10**18
_SIZE = re.compile(r"(\d[\d_,]*(?:\.\d+)?)\s*(?:([KMGT])(I?)B?)?", re.IGNORECASE)


def parse_count(text: str | int) -> int:
    """A whole number of things, exactly: "4.5B" is 4_500_000_000, "4.5" is an error, and so is what exceeds 1e18."""
    number = str(text).strip().replace("_", "").replace(",", "").upper()
    unit = number[-1:] if number[-1:] in _UNITS else ""
    try:
        value = Decimal(number.removesuffix(unit)) * _UNITS[unit]
    except InvalidOperation:
        value = Decimal(-1)
    if not (value.is_finite() and 0 <= value < _LARGEST):
        raise MinitronError(f"{text!r} is not a count", "write it like 4.5B, 300M or 1_000")
    if value != int(value):
        raise MinitronError(f"{text!r} is not a whole number", "write it like 4.5B, 300M or 1_000")
    return int(value)


def count_text(value: float) -> str:
    """A count as people read it: 4_512_746_496 -> "4.51B"."""
    for unit, factor in (("T", 10**12), ("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if value >= factor:
            return f"{value / factor:.2f}{unit}".replace(".00", "")
    return f"{value:g}"


def parse_bytes(text: str | int) -> int:
    """Bytes as people write them: "24GB", "512M", "1.5TB", "16GiB" (1024 to the third), or a plain number."""
    found = _SIZE.fullmatch(str(text).strip())
    if found is None:
        raise MinitronError(f"{text!r} is not a size", "write it like 16GB, 512MB or 16000000000")
    number, unit, binary = found.groups()
    value = Decimal(number.replace("_", "").replace(",", "")) * (1024 if binary else 1000) ** " KMGT".index(
        (unit or " ").upper()
    )
    if not 0 < value < _LARGEST:
        raise MinitronError(f"{text!r} is not a size above 0", "write it like 16GB, 512MB or 16000000000")
    return int(value)


def bytes_text(value: float) -> str:
    """A size as people read it: decimal units, as disks and checkpoints are quoted."""
    for unit, factor in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("KB", 10**3)):
        if value >= factor:
            return f"{value / factor:.2f} {unit}"
    return f"{value:g} B"


def runs(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """Ascending whole numbers as runs, the first and the last of each: [0, 1, 2, 7] -> [(0, 2), (7, 7)]."""
    found: list[tuple[int, int]] = []
    for number in numbers:
        if found and number == found[-1][1] + 1:
            found[-1] = (found[-1][0], number)
        else:
            found.append((number, number))
    return found
