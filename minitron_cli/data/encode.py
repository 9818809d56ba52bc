"""Pieces of text -> parts of a token file, one file set per piece, in this process or in several.

part-00000.bin    the tokens of the piece
part-00000.npy    its documents, ends counted from the start of the piece
part-00000.json   its counts; written last, so that a part with this file is complete
"""

import errno
import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import BinaryIO

import numpy as np

from minitron_cli.data.readers import Document, Fields, Piece, read_piece
from minitron_cli.data.tokenizer import TextTokenizer, load_tokenizer
from minitron_cli.data.tokens import DOCUMENT
from minitron_cli.errors import MinitronError

_BATCH_DOCUMENTS, _BATCH_BYTES = 1024, 4 << 20
Progress = Callable[[int, int, int], None]  # bytes done, bytes in all, tokens so far


@dataclass(frozen=True, slots=True)
class Task:
    """One piece to encode: which columns to read, and the domain of the documents that name none."""

    index: int
    piece: Piece
    fields: Fields
    domain: str


@dataclass(frozen=True, slots=True)
class Encoding:
    """How every piece is encoded: ids before and after each document, and the dtype on disk."""

    tokenizer: Path
    before: tuple[int, ...]
    after: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, slots=True)
class Part:
    """What one finished piece holds."""

    num_tokens: int
    num_documents: int
    num_bytes: int
    num_empty: int
    domains: tuple[str, ...]  # in order of first appearance; the documents of the part index into them


Encode = Callable[[Task, Encoding, TextTokenizer, Path], Part]


def part_path(directory: Path, index: int, suffix: str) -> Path:
    return directory / f"part-{index:05d}.{suffix}"


def read_part(directory: Path, index: int) -> Part | None:
    """The counts of a finished part, or None where it is not finished."""
    file = part_path(directory, index, "json")
    if not file.is_file():
        return None
    found = json.loads(file.read_text(encoding="utf-8"))
    return Part(**{**found, "domains": tuple(found["domains"])})


def encode_piece(task: Task, how: Encoding, tokenizer: TextTokenizer, directory: Path) -> Part:
    """Encode one piece into `directory`."""
    numbers: dict[str, int] = {}
    ends, sizes, domains = [], [], []
    num_tokens = num_empty = 0
    with room_for_parts(directory):
        with whole_file(part_path(directory, task.index, "bin")) as stream:
            for kept, empty in read_texts(task):
                num_empty += empty
                texts = [document.text for document in kept]
                sizes += [utf8_bytes(document) for document in kept]
                for encoded in tokenizer.backend.encode_batch_fast(texts, add_special_tokens=False):
                    row = np.array([*how.before, *encoded.ids, *how.after], how.dtype)
                    stream.write(row.tobytes())
                    num_tokens += len(row)
                    ends.append(num_tokens)
                domains += [numbers.setdefault(document.domain or task.domain, len(numbers)) for document in kept]
        part = Part(num_tokens, len(ends), sum(sizes), num_empty, tuple(numbers))
        _write_index(part_path(directory, task.index, "npy"), ends, sizes, domains)
        write_marker(part_path(directory, task.index, "json"), part)
    return part


@contextmanager
def room_for_parts(directory: Path) -> Iterator[None]:
    """Report a full disk as MinitronError; unlike other outputs the finished parts stay: they may be hours of work."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise MinitronError(
            f"no space left for tokens; the finished parts are kept in {directory}",
            "free some space and run the same line again, or remove that directory",
        ) from error


def read_texts(task: Task) -> Iterator[tuple[list[Document], int]]:
    """The documents of a piece in batches, without the empty ones, and how many of those there were."""
    for batch in _batches(read_piece(task.piece, task.fields)):
        kept = [document for document in batch if document.text]
        yield kept, len(batch) - len(kept)


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if len(batch) >= _BATCH_DOCUMENTS or size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def utf8_bytes(document: Document) -> int:
    """The size of a document; refuses what is not text."""
    try:
        return len(document.text.encode("utf-8"))
    except UnicodeEncodeError as error:
        raise MinitronError(
            f"{document.place}: the text holds half a surrogate pair ({error.object[error.start]!r}): it is not text",
            "repair the escape in the source",
        ) from error


@contextmanager
def whole_file(file: Path) -> Iterator[BinaryIO]:
    """Write `file` whole or not at all, whoever else may be writing the same."""
    temporary = file.with_name(f"{file.name}-{os.getpid()}")
    with temporary.open("wb") as stream:
        yield stream
    temporary.replace(file)


def _write_index(file: Path, ends: list[int], sizes: list[int], domains: list[int]) -> None:
    index = np.zeros(len(ends), DOCUMENT)
    index["end"], index["byte_end"], index["domain"] = ends, np.cumsum(sizes, dtype=np.uint64), domains
    with whole_file(file) as stream:
        write_npy_header(stream, DOCUMENT, len(index))
        stream.write(index.tobytes())


def write_npy_header(stream: BinaryIO, dtype: np.dtype, count: int) -> None:
    """Begin a .npy file of `count` records, whose bytes are to follow by `stream.write`.

    np.save and memory maps are not used for writing: on a full disk the one raises an OSError without its number, the
    other ends the process by SIGBUS.
    """
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (count,)}
    np.lib.format.write_array_header_1_0(stream, header)


def write_marker(file: Path, part: Part) -> None:
    """Say that a part is finished; the last of its files."""
    with whole_file(file) as stream:
        stream.write(json.dumps(asdict(part)).encode())


def encode_all(
    tasks: tuple[Task, ...],
    how: Encoding,
    tokenizer: TextTokenizer,
    directory: Path,
    workers: int,
    progress: Progress,
    encode: Encode = encode_piece,
) -> list[Part]:
    """Make a part of every piece that has no finished one in `directory` yet; the parts in order."""
    parts = [read_part(directory, task.index) for task in tasks]
    left = [task for task, part in zip(tasks, parts) if part is None]
    total = sum(task.piece.size for task in tasks)
    done = total - sum(task.piece.size for task in left)
    tokens = sum(part.num_tokens for part in parts if part is not None)
    progress(done, total, tokens)
    encoded = (
        _in_processes(left, how, directory, workers, encode)
        if workers > 1
        else ((task, encode(task, how, tokenizer, directory)) for task in left)
    )
    for task, part in encoded:
        parts[task.index] = part
        done, tokens = done + task.piece.size, tokens + part.num_tokens
        progress(done, total, tokens)
    return [part for part in parts if part is not None]


def _in_processes(
    tasks: list[Task], how: Encoding, directory: Path, workers: int, encode: Encode
) -> Iterator[tuple[Task, Part]]:
    """In `workers` processes, each with one thread; parts arrive in any order."""
    context = get_context("spawn")  # a forked child would inherit the locks of the tokenizer's threads
    with ProcessPoolExecutor(min(workers, max(len(tasks), 1)), context, _start_worker, (how.tokenizer,)) as pool:
        waiting: dict[Future[Part], Task] = {pool.submit(_work, encode, task, how, directory): task for task in tasks}
        try:
            while waiting:
                finished, _ = wait(waiting, return_when=FIRST_COMPLETED)
                for future in finished:
                    yield waiting.pop(future), future.result()
        except BrokenProcessPool as error:
            raise MinitronError(
                "a tokenisation process was killed (out of memory?)",
                "run the same line again with fewer --workers: finished parts are kept",
            ) from error
        finally:
            for future in waiting:
                future.cancel()


_worker_tokenizer: TextTokenizer | None = None


def _start_worker(tokenizer: Path) -> None:
    global _worker_tokenizer
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _worker_tokenizer = load_tokenizer(tokenizer)


def _end_with_parent() -> None:
    """End with the parent: a worker holds both ends of the queue, and would wait forever once that is killed."""
    parent = parent_process()
    assert parent is not None, "a worker has a parent"
    parent.join()
    os._exit(1)


def _work(encode: Encode, task: Task, how: Encoding, directory: Path) -> Part:
    assert _worker_tokenizer is not None, "a worker starts with its tokenizer"
    return encode(task, how, _worker_tokenizer, directory)
