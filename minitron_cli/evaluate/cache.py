"""Results of finished evaluation rows, kept by what they depend on: a second run finds them, and an interrupted one."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from minitron_cli.checkpoint.kept import kept

FORMAT = 3


def default_cache() -> Path:
    """$MINITRON_CACHE/eval, else ~/.cache/minitron/eval."""
    return Path(os.environ.get("MINITRON_CACHE") or "~/.cache/minitron").expanduser() / "eval"


def cached(directory: Path | None, identity: Mapping[str, Any], make: Callable[[], Any]) -> tuple[Any, bool]:
    """`(result, found)`: the JSON result of an equal `identity`, or that of `make()`, which is then kept.

    `directory` None keeps nothing.
    """
    if directory is None:
        return make(), False
    key = hashlib.sha256(json.dumps({"format": FORMAT, **identity}, sort_keys=True).encode()).hexdigest()[:40]
    return kept(directory / f"{key}.json", identity, make)
