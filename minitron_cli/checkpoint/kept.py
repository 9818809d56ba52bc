"""Results kept in files with what they depend on: made once, and found again as long as that is the same."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from minitron_cli.checkpoint.atomic import atomic_file


def kept(file: Path, identity: Mapping[str, Any], make: Callable[[], Any]) -> tuple[Any, bool]:
    """`(result, found)`: what `file` holds for an equal `identity`, or what `make()` gives, which is then written.

    Both are JSON values. A file that cannot be read counts as absent.
    """
    wanted = json.loads(json.dumps(dict(identity)))
    try:
        there = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        there = None
    if isinstance(there, dict) and "result" in there and there.get("identity") == wanted:
        return there["result"], True
    result = make()
    with atomic_file(file) as temporary:
        temporary.write_text(json.dumps({"identity": wanted, "result": result}), encoding="utf-8")
    return result, False
