"""The toy corpus: documents of every domain in fixed shares, shuffled, as JSON lines."""

from __future__ import annotations

import json
import random
from pathlib import Path

from minitron_cli.toy.domains import DOMAINS, World

# Shares of the text, in characters. Recall is over-weighted for its size: looking up takes longest to learn.
SHARES = {"stories": 0.4, "arithmetic": 0.15, "brackets": 0.15, "recall": 0.3}


def documents(world: World, seed: int, split: str, characters: int) -> list[tuple[str, str]]:
    """`(text, domain)` of about `characters` characters in all; another `split` is another draw of the same world."""
    found: list[tuple[str, str]] = []
    for domain, make in DOMAINS.items():
        rng = random.Random(f"{split}:{domain}:{seed}")
        written = 0
        while written < characters * SHARES[domain]:
            text = make(rng, world).text
            found.append((text, domain))
            written += len(text)
    random.Random(f"{split}:order:{seed}").shuffle(found)
    return found


def write_jsonl(path: Path, rows: list[dict[str, object]]) -> None:
    """One JSON object a line, ASCII, so that the bytes are the same everywhere."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="ascii", newline="\n")
