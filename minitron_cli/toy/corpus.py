"""The toy corpus: documents of every domain in fixed shares, shuffled, as JSON lines."""

import json
import random
from pathlib import Path

from minitron_cli.toy.domains import DOMAINS, World

# Shares of the text, in characters; sums and brackets have more tokens to a character. Looking things up (recall, and
# the things of a story) takes longest to learn and gets most.
SHARES = {"stories": 0.45, "arithmetic": 0.06, "brackets": 0.06, "recall": 0.43}


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
