"""Values that JSON can represent."""

import json
import math
from typing import Any


def finite(value: Any, place: str = "") -> tuple[Any, list[str]]:
    """The value with null for every number that is NaN or infinite, which JSON does not have; and where those were."""
    if isinstance(value, float) and not math.isfinite(value):
        return None, [place]
    if isinstance(value, dict):
        found = {key: finite(item, f"{place}.{key}" if place else str(key)) for key, item in value.items()}
        return {key: item for key, (item, _) in found.items()}, [p for _, places in found.values() for p in places]
    if isinstance(value, list | tuple):
        items = [finite(item, f"{place}[{index}]") for index, item in enumerate(value)]
        return [item for item, _ in items], [p for _, places in items for p in places]
    return value, []


def json_text(value: Any, indent: int | None = None) -> str:
    """Strict JSON: NaN and infinity become null, other unknown types become text."""
    return json.dumps(finite(value)[0], indent=indent, default=str, allow_nan=False)
