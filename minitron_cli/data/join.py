"""The parts of a token file, end to end, in the order of their pieces."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minitron_cli.data.encode import Part, part_path, write_npy_header
from minitron_cli.data.tokens import DOCUMENT, DOCUMENTS, TOKENS

_BLOCK = 1 << 22


@dataclass(frozen=True, slots=True)
class Joined:
    """The fields of the header that follow from the parts."""

    num_tokens: int
    num_documents: int
    num_bytes: int
    num_empty: int
    domains: tuple[str, ...]
    tokens_sha256: str


def join_parts(parts: list[Part], parts_dir: Path, directory: Path) -> Joined:
    """Write tokens.bin and documents.npy of `directory` from the finished parts in `parts_dir`."""
    domains = tuple(dict.fromkeys(name for part in parts for name in part.domains))
    digest = hashlib.sha256()
    with (directory / TOKENS).open("wb") as stream:
        for index in range(len(parts)):
            with part_path(parts_dir, index, "bin").open("rb") as source:
                while block := source.read(_BLOCK):
                    digest.update(block)
                    stream.write(block)
    _join_indices(parts, parts_dir, directory / DOCUMENTS, domains)
    return Joined(
        num_tokens=sum(part.num_tokens for part in parts),
        num_documents=sum(part.num_documents for part in parts),
        num_bytes=sum(part.num_bytes for part in parts),
        num_empty=sum(part.num_empty for part in parts),
        domains=domains,
        tokens_sha256=digest.hexdigest(),
    )


def _join_indices(parts: list[Part], parts_dir: Path, file: Path, domains: tuple[str, ...]) -> None:
    """Ends counted from the start of a part become ends counted from the start of the file, its domains the file's."""
    tokens = num_bytes = 0
    with file.open("wb") as stream:
        write_npy_header(stream, DOCUMENT, sum(part.num_documents for part in parts))
        for index, part in enumerate(parts):
            rows = np.load(part_path(parts_dir, index, "npy"), allow_pickle=False)
            numbers = np.array([domains.index(name) for name in part.domains], "<u2")
            rows["end"] += np.uint64(tokens)
            rows["byte_end"] += np.uint64(num_bytes)
            if len(rows):
                rows["domain"] = numbers[rows["domain"]]
            stream.write(rows.tobytes())
            tokens, num_bytes = tokens + part.num_tokens, num_bytes + part.num_bytes
