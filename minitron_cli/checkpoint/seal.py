"""A JSON object that carries the sha256 of the rest of itself, so that an altered value is detected."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minitron_cli.errors import MinitronError

DIGEST = "digest"


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """`content` with its digest as last entry, in place of an earlier one."""
    rest = {key: value for key, value in content.items() if key != DIGEST}
    return {**rest, DIGEST: _digest(rest)}


def is_sealed(content: Mapping[str, Any]) -> bool:
    """Whether the object carries a digest; those that older versions wrote carry none."""
    return DIGEST in content


def is_altered(content: Mapping[str, Any]) -> bool:
    """Whether the digest that the object carries is not that of the rest."""
    return is_sealed(content) and sealed(content)[DIGEST] != content[DIGEST]


def require_unaltered(content: Mapping[str, Any], file: Path) -> None:
    """Raise MinitronError where the object does not match its digest; one without a digest passes."""
    if is_altered(content):
        raise MinitronError(
            f"{file} was altered after it was written (its digest does not match)", "restore it, or make it again"
        )


def _digest(content: Mapping[str, Any]) -> str:
    """sha256 of the object as JSON that does not depend on the order of keys, or on tuples for lists."""
    plain = json.loads(json.dumps(content))
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
