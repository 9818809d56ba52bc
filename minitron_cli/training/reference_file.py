"""Files of reference losses: what a student should reach on each held-out set.

A file says with which tokenizer, length, windows and text they were measured; losses of anything else say
nothing about a run, and are refused.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from minitron_cli.checkpoint.atomic import atomic_file
from minitron_cli.checkpoint.seal import require_unaltered, sealed
from minitron_cli.data.tokenizer import tokenizer_hash
from minitron_cli.data.tokens import TokenFile
from minitron_cli.errors import MinitronError
from minitron_cli.training.options import Options
from minitron_cli.training.validation import num_windows

_FORMAT = "minitron-reference-losses"
_ANEW = "make it again with minitron reference-loss"


@dataclass(frozen=True, slots=True)
class Domain:
    """The loss of one held-out set, nats per token, on the first `windows` windows of the tokens of this digest."""

    name: str
    loss: float
    windows: int
    tokens_sha256: str


@dataclass(frozen=True, slots=True)
class References:
    """Losses by domain, of a model of `parameters` parameters; `model` is its digest, empty where it is predicted."""

    domains: tuple[Domain, ...]
    tokenizer_hash: str
    seq_len: int
    cross_doc: bool
    parameters: int
    model: str = ""

    def conditions(self) -> dict[str, Any]:
        """What must be equal for losses to be comparable, domain by domain."""
        sets = [[domain.windows, domain.tokens_sha256] for domain in self.domains]
        return {"tokenizer": self.tokenizer_hash, "length": self.seq_len, "cross-doc": self.cross_doc, "text": sets}


def write_references(file: Path, found: References, **more: Any) -> None:
    """Write a file of reference losses; `more` tells how they came about."""
    with atomic_file(file) as temporary:
        temporary.write_text(json.dumps(sealed({"format": _FORMAT, **asdict(found), **more}), indent=1) + "\n")


def read_references(file: Path) -> References:
    """Read a file of reference losses; a MinitronError says what is wrong with it."""
    if not file.is_file():
        raise MinitronError(f"there is no file of reference losses {file}", _ANEW)
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if found["format"] != _FORMAT:
            raise ValueError(f"its format is {found['format']!r}")
        require_unaltered(found, file)
        domains = tuple(Domain(str(d["name"]), float(d["loss"]), int(d["windows"]), str(d["tokens_sha256"]))
                        for d in found["domains"])  # fmt: skip
        return References(
            domains, str(found["tokenizer_hash"]), int(found["seq_len"]), bool(found["cross_doc"]),
            int(found["parameters"]), str(found["model"]),
        )  # fmt: skip
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise MinitronError(f"{file} holds no reference losses: {error}", _ANEW) from error


def references_for(
    file: Path, held_out: Sequence[TokenFile], names: Sequence[str], options: Options, tokenizer: Path
) -> tuple[float, ...]:
    """The reference of every held-out set (domain,); refuses a file measured under other conditions."""
    found = read_references(file)
    faults = []
    if found.tokenizer_hash != tokenizer_hash(tokenizer):
        faults.append(f"another tokenizer than that of {tokenizer}")
    if found.seq_len != options.seq_len:
        faults.append(f"windows of {found.seq_len:,} tokens, the run has {options.seq_len:,}")
    if found.cross_doc != options.cross_doc:
        faults.append("documents " + ("not " if found.cross_doc else "") + "kept apart, unlike the run")
    by_text = {domain.tokens_sha256: domain for domain in found.domains}
    losses = []
    for name, held in zip(names, held_out):
        domain = by_text.get(held.header.tokens_sha256)
        windows = num_windows(held, options)
        if domain is None:
            faults.append(f"other text than {name}")
        elif domain.windows != windows:
            faults.append(f"{domain.windows:,} windows of {name}, the run has {windows:,}")
        else:
            losses.append(domain.loss)
    if faults:
        raise MinitronError(
            f"{file} was measured with {'; '.join(faults)}",
            "give the --eval-data, --seq-len and --eval-windows that it was measured with, or measure again",
        )
    return tuple(losses)
