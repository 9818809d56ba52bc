"""Token files: a tokenised corpus as one flat memory-mapped array, with an index of its documents.

    DIR/tokens.bin      every token end to end, little-endian uint16 (ids below 65,536) or uint32
    DIR/documents.npy   one record per document: where it ends in tokens and in bytes of text, and its domain
    DIR/header.json     what it was made from and how

Training reads windows of `seq_len` tokens cut end to end; the tail that fills no window is not read. Nothing in the
directory depends on when, where or by how many processes it was made, so equal inputs give equal bytes.
"""

import json
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from minitron_cli.errors import MinitronError

FORMAT_VERSION = 1
TOKENS, DOCUMENTS, HEADER = "tokens.bin", "documents.npy", "header.json"
# Ends are cumulative, so that the document of a token is one binary search in a memory map.
DOCUMENT = np.dtype([("end", "<u8"), ("byte_end", "<u8"), ("domain", "<u2")])

_SCAN = 1 << 24  # tokens looked at in one go


def id_type(vocab: int) -> str:
    """The numpy type in which ids below `vocab` are stored."""
    return "<u2" if vocab <= 1 << 16 else "<u4"


@dataclass(frozen=True, slots=True)
class Header:
    """The header of a token file; `sources` are `{"name", "sha256"}` of what was read, in order."""

    dtype: str  # of the ids, see `id_type`
    num_tokens: int
    num_documents: int
    num_bytes: int  # UTF-8 text of all documents
    num_empty: int  # documents without a character, which are left out
    vocab_size: int  # largest id of the tokenizer + 1
    tokenizer_hash: str
    bos_id: int | None
    eos_id: int | None
    separator: str  # resolved: "bos", "eos", "bos+eos" or "none"
    text_field: str | None
    domains: tuple[str, ...]
    sources: tuple[dict[str, str], ...]
    tokens_sha256: str  # of tokens.bin

    def to_json(self) -> str:
        return json.dumps({"format": "minitron-tokens", "version": FORMAT_VERSION, **asdict(self)}, indent=1) + "\n"


@dataclass(frozen=True, slots=True, eq=False)
class TokenFile:
    """An open token file: `tokens` (num_tokens,) and `documents` (num_documents,) are read-only memory maps."""

    path: Path
    header: Header
    tokens: np.ndarray
    documents: np.ndarray

    @classmethod
    def open(cls, path: Path) -> "TokenFile":
        """Open and check a token directory: header fields, format version, sizes of both arrays."""
        path = Path(path)
        header = read_header(path)
        wanted = {
            TOKENS: header.num_tokens * np.dtype(header.dtype).itemsize,
            DOCUMENTS: header.num_documents * DOCUMENT.itemsize,
        }
        for name, size in wanted.items():
            found = (path / name).stat().st_size if (path / name).is_file() else None
            if found is None or found < size or (name == TOKENS and found != size):
                state = "is missing" if found is None else f"has {found:,} bytes, its header says {size:,}"
                raise MinitronError(f"{path / name} {state}", "make the token file again with minitron data tokenize")
        if not header.num_tokens:
            raise MinitronError(f"token file {path} has no tokens", "make it again from sources that hold text")
        tokens = np.memmap(path / TOKENS, dtype=header.dtype, mode="r", shape=(header.num_tokens,))
        return cls(path, header, tokens, _open_documents(path / DOCUMENTS, header.num_documents))

    @property
    def name(self) -> str:
        """What the user knows it by: the one file that it was made from, else its directory."""
        made_from = self.header.sources[0] if len(self.header.sources) == 1 else {}
        return str(made_from.get("file") or made_from.get("name") or self.path)

    def num_windows(self, seq_len: int) -> int:
        """How many whole windows of `seq_len` tokens the file holds."""
        return self.header.num_tokens // seq_len

    def windows(self, indices: np.ndarray, seq_len: int) -> np.ndarray:
        """The windows of `indices` (n,) in that order: (n, seq_len) int64."""
        self._require_whole()
        count = self.num_windows(seq_len)
        assert len(indices) == 0 or (indices.min() >= 0 and indices.max() < count), "a window outside the file"
        return self.tokens[: count * seq_len].reshape(count, seq_len)[indices].astype(np.int64)

    def _require_whole(self) -> None:
        """Refuse a file that was truncated after it was opened: the system ends a process that reads beyond its end."""
        with suppress(FileNotFoundError):  # a file that is replaced or removed stays intact for those who have it open
            if (self.path / TOKENS).stat().st_size < self.tokens.nbytes:
                raise MinitronError(
                    f"{self.path / TOKENS} was truncated while it was read",
                    "make the token file again with minitron data tokenize",
                )

    def document_numbers(self, indices: np.ndarray, seq_len: int) -> np.ndarray:
        """The document that each token of the windows belongs to: (n, seq_len) int64, ascending along a row."""
        positions = np.asarray(indices, np.int64)[:, None] * seq_len + np.arange(seq_len)
        return np.searchsorted(self.documents["end"], positions, side="right")

    def domain_numbers(self, indices: np.ndarray, seq_len: int) -> np.ndarray:
        """Index into `header.domains` of each token of the windows: (n, seq_len) int64."""
        return self.documents["domain"][self.document_numbers(indices, seq_len)].astype(np.int64)

    def first_domains(self, seq_len: int) -> np.ndarray:
        """Index into `header.domains` of the first token of every window: (num_windows,) int64."""
        starts = np.arange(self.num_windows(seq_len), dtype=np.int64) * seq_len
        return self.documents["domain"][np.searchsorted(self.documents["end"], starts, side="right")].astype(np.int64)

    def document_spans(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """First and past-the-last token of the documents of `indices`: two (n,) int64."""
        ends = self.documents["end"]
        indices = np.asarray(indices, np.int64)
        starts = np.where(indices > 0, ends[np.maximum(indices - 1, 0)], 0)
        return starts.astype(np.int64), ends[indices].astype(np.int64)


def _open_documents(file: Path, count: int) -> np.ndarray:
    try:
        documents = np.load(file, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError):
        documents = np.empty(0)
    if documents.dtype != DOCUMENT or documents.shape != (count,):
        raise MinitronError(
            f"{file} is not the index that its header describes",
            "make the token file again with minitron data tokenize",
        )
    return documents


def is_token_directory(path: Path) -> bool:
    return (path / HEADER).is_file() and (path / TOKENS).is_file()


def read_header(path: Path) -> Header:
    """Read and check `path`/header.json; a MinitronError names what is wrong with it."""
    file = path / HEADER
    if not file.is_file():
        raise MinitronError(f"{path} is not a token file: it has no {HEADER}", "make one with minitron data tokenize")
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise MinitronError(f"{file} is not JSON: {error}", "make it again with minitron data tokenize") from error
    if not isinstance(found, dict) or found.pop("format", None) != "minitron-tokens":
        raise MinitronError(f"{file} is not the header of a token file", "make one with minitron data tokenize")
    version = found.pop("version", None)
    if version != FORMAT_VERSION:
        raise MinitronError(
            f"{file} has format version {version}, this minitron reads {FORMAT_VERSION}",
            "make it again with minitron data tokenize",
        )
    names = [field.name for field in fields(Header)]
    wrong = sorted(set(names) ^ set(found))
    if wrong:
        raise MinitronError(f"{file}: missing or unknown fields: {', '.join(wrong)}", "make the token file again")
    if not _is_well_typed(found):
        raise MinitronError(f"{file} is damaged: a field has a value of another type", "make the token file again")
    return Header(**{**found, "domains": tuple(found["domains"]), "sources": tuple(found["sources"])})


def _is_well_typed(found: dict[str, Any]) -> bool:
    """Whether the fields that are computed with, or taken apart, hold what they should."""
    counts = ("num_tokens", "num_documents", "num_bytes", "num_empty", "vocab_size")
    return (
        all(isinstance(found[name], int) and found[name] >= 0 for name in counts)
        and found["dtype"] in ("<u2", "<u4")
        and all(isinstance(found[name], str) for name in ("tokenizer_hash", "separator", "tokens_sha256"))
        and isinstance(found["domains"], list)
        and isinstance(found["sources"], list)
        and all(isinstance(source, dict) for source in found["sources"])
    )


def require_one_tokenizer(files: tuple[TokenFile, ...]) -> str:
    """The tokenizer hash that all of `files` share, or an error naming those that differ from the first."""
    first = files[0].header.tokenizer_hash
    others = [str(file.path) for file in files if file.header.tokenizer_hash != first]
    if others:
        raise MinitronError(
            f"made with another tokenizer than {files[0].path}: {', '.join(others)}",
            "tokenise every source with the same --tokenizer",
        )
    return first


def require_ids_below(files: tuple[TokenFile, ...], vocab: int, model: Path) -> None:
    """Refuse files with an id that a model of `vocab` embeddings does not have. A tokenizer may know more ids than the
    text ever uses, so where it does the tokens themselves are looked at."""
    for file in files:
        if file.header.vocab_size <= vocab:
            continue
        blocks = range(0, file.header.num_tokens, _SCAN)
        largest = max(int(file.tokens[start : start + _SCAN].max()) for start in blocks)
        require_ids_in(np.array([largest]), vocab, model, file.name)


def require_ids_in(ids: np.ndarray, vocab: int, model: Path, origin: str) -> None:
    """Refuse ids (any shape) from `origin` that a model of `vocab` embeddings does not have."""
    largest = int(ids.max())
    if largest >= vocab:
        raise MinitronError(
            f"{origin} holds token id {largest:,}, {model} has {vocab:,} embeddings",
            "tokenise the text with the tokenizer of this model",
        )
