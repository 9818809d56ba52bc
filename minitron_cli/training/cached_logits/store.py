"""A recorded teacher: its next-token logits for every window of some token files (see layout.py).

DIR/plan.json        what is being recorded, written first: only under the same does an interrupted one go on
DIR/windows-I.npy    which windows of token file I there are, ascending (n,) int64
DIR/top-I.bin        their n records in that order, appended as they are made; drawn-I.bin where ids are drawn
DIR/ends-I.npy       where each record of drawn-I.bin ends (n,) int64
DIR/header.json      the plan again and the sha256 of the files, written last: with it the recording is finished
"""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch

from minitron_cli.checkpoint.atomic import atomic_file
from minitron_cli.checkpoint.disk import make_directory
from minitron_cli.checkpoint.provenance import changed_files, digests
from minitron_cli.checkpoint.seal import DIGEST, require_unaltered, sealed
from minitron_cli.errors import MinitronError
from minitron_cli.training.cached_logits.layout import Cached, Layout, SampledLayout, TopKLayout

PLAN, HEADER, FORMAT = "plan.json", "header.json", "minitron-teacher-1"
_AGAIN = "remove the directory and record the teacher again"


@dataclass(frozen=True, slots=True)
class Header:
    """What a recording is of. `vocab` ids were compared at `temperature`, and of each distribution kept the `top_k`
    ids, or where these are 0 `draws` of them, drawn by `seed` from the distribution raised to `power`. Of a teacher
    with a larger vocabulary than the student `reader` identifies how it reads the student's text."""

    teacher: str  # digest of the model
    tokenizer_hash: str
    tokens_sha256: tuple[str, ...]
    seq_len: int
    top_k: int
    vocab: int
    temperature: float
    cross_doc: bool = True  # whether the teacher saw the documents of a window as one text
    draws: int = 0
    power: float = 1.0
    seed: int = 0
    reader: str = ""
    format: str = FORMAT

    def layout(self) -> Layout:
        """How a window lies on disk."""
        if self.draws:
            return SampledLayout(self.seq_len - 1, self.draws, self.power, self.vocab, bool(self.reader))
        return TopKLayout(self.seq_len - 1, self.top_k, self.vocab, bool(self.reader))

    def file(self, path: Path, index: int) -> Path:
        """The records of a token file."""
        return path / f"{self.layout().name}-{index}.bin"

    def num_bytes(self, path: Path) -> int:
        """What the records take now."""
        return sum(file.stat().st_size for file in path.glob(f"{self.layout().name}-*.bin"))

    def __str__(self) -> str:
        if not self.draws:
            return f"the top {self.top_k}"
        return f"{self.draws} draws" + (f" from p^{self.power:g}" if self.power != 1 else "")


@dataclass(frozen=True, slots=True, eq=False)
class Recording:
    """An open recording: per token file the window numbers it has, their records as bytes, and where each one ends.

    `files` maps the name of each file to its sha256; it is empty for a recording that was made without.
    """

    path: Path
    header: Header
    windows: tuple[np.ndarray, ...]
    records: tuple[np.ndarray, ...]
    ends: tuple[np.ndarray, ...]
    files: Mapping[str, str] = field(default_factory=dict)

    def require_unaltered(self) -> None:
        """Compare every file with its sha256, which reads them whole."""
        if problems := changed_files(self.path, self.files):
            raise MinitronError(f"{self.path} is not what was recorded: {'; '.join(problems)}", _AGAIN)

    def lacks(self, file: int, windows: np.ndarray) -> np.ndarray:
        """The windows of a token file that were not recorded."""
        return np.setdiff1d(windows, self.windows[file])

    def read(self, files: np.ndarray, windows: np.ndarray) -> "Taught":
        """The records of window windows[r] of token file files[r] as row r."""
        return Taught(self.header.layout(), [self._record(f, w) for f, w in zip(files, windows)], str(self.path))

    def _record(self, file: int, window: int) -> bytes:
        place = int(np.searchsorted(self.windows[file], window))
        begin = self.ends[file][place - 1] if place else 0
        return self.records[file][begin : self.ends[file][place]].tobytes()


@dataclass(frozen=True, slots=True, eq=False)
class Taught:
    """The records of some rows; `source` names where they come from, for errors."""

    layout: Layout
    records: list[bytes]
    source: str

    def at(self, part: slice, device: torch.device) -> Cached:
        """The rows of a micro-batch, flat: seq_len predictions a row, the last one a copy that weighs nothing."""
        found = self.layout.unpack(self.records[part])
        if (largest := int(found.ids.max())) >= self.layout.vocab:
            raise MinitronError(f"{self.source} is damaged: it holds id {largest} of {self.layout.vocab}", _AGAIN)
        return found.to(device)


def is_recording(path: Path) -> bool:
    return (path / PLAN).is_file() and (path / HEADER).is_file()


def open_recording(path: Path) -> Recording:
    """Open and check a finished recording."""
    header, files = _read_header(path / HEADER)
    windows = tuple(_read_numbers(path / f"windows-{i}.npy") for i in range(len(header.tokens_sha256)))
    records, ends = [], []
    for i, numbers in enumerate(windows):
        file = header.file(path, i)
        data = _bytes_of(file)
        found = _read_numbers(path / f"ends-{i}.npy") if header.draws else header.layout().ends(data, len(numbers))
        if len(found) != len(numbers) or len(data) != (found[-1] if len(found) else 0):
            raise MinitronError(f"{file} has {len(data):,} bytes, which are not {len(numbers):,} records", _AGAIN)
        records.append(data)
        ends.append(found)
    return Recording(path, header, windows, tuple(records), tuple(ends), files)


def _bytes_of(file: Path) -> np.ndarray:
    """A file as a memory map; one that is empty, or not there, has no bytes."""
    if not file.is_file() or not file.stat().st_size:
        return np.empty(0, np.uint8)
    return np.memmap(file, np.uint8, mode="r")


def check_place(path: Path, header: Header, windows: tuple[np.ndarray, ...]) -> None:
    """Refuse a directory that holds anything but a recording of the same plan, finished or not."""
    if (path / PLAN).is_file():
        same = _read_header(path / PLAN)[0] == header
        if not same or any(
            not np.array_equal(_read_numbers(path / f"windows-{i}.npy"), w) for i, w in enumerate(windows)
        ):
            raise MinitronError(
                f"{path} holds a recording of something else", "choose another --record-teacher directory"
            )
        return
    if path.exists() and not path.is_dir():
        raise MinitronError(f"{path} is a file", "choose another --record-teacher directory")
    if path.exists() and any(p.name != PLAN and not p.name.startswith("windows-") for p in path.iterdir()):
        raise MinitronError(f"{path} exists and holds no recording", "choose another --record-teacher directory")


def begin(path: Path, header: Header, windows: tuple[np.ndarray, ...]) -> None:
    """Create the directory of a recording, unless there is one of the same plan."""
    check_place(path, header, windows)
    if (path / PLAN).is_file():
        return
    make_directory(path)
    for i, numbers in enumerate(windows):
        np.save(path / f"windows-{i}.npy", numbers)
    _write(path / PLAN, header)


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """A file of records of a token file's windows from place `start` on, and where each whole one ends."""

    file: Path
    start: int
    ends: np.ndarray

    @property
    def stop(self) -> int:
        return self.start + len(self.ends)

    def offset(self, place: int) -> int:
        """Where the record of a place begins, or the last one ends."""
        return int(self.ends[place - self.start - 1]) if place > self.start else 0


class Stretch(NamedTuple):
    """Places `start` to `stop` of the windows of a token file."""

    file: int
    start: int
    stop: int


def parts(path: Path, header: Header, file: int, wanted: int) -> list[Part]:
    """What there is of the `wanted` records of a token file, in the order of their first: all processes' parts."""
    whole = header.file(path, file)
    found = [(0, whole), *((int(p.stem.rpartition("-")[2]), p) for p in path.glob(f"{whole.stem}-*.bin"))]
    return [Part(p, start, header.layout().ends(_bytes_of(p), wanted - start)) for start, p in sorted(found)]


def missing(path: Path, header: Header, windows: tuple[np.ndarray, ...], size: int) -> list[Stretch]:
    """The stretches of `size` windows that are not there whole; they begin at the same places whatever there is."""
    found = []
    for file, numbers in enumerate(windows):
        there = np.zeros(len(numbers), bool)
        for part in parts(path, header, file, len(numbers)):
            there[part.start : part.stop] = True
        stretches = [Stretch(file, at, min(at + size, len(numbers))) for at in range(0, len(numbers), size)]
        found += [one for one in stretches if not there[one.start : one.stop].all()]
    return found


class Appender:
    """Appends the records of stretches; those of consecutive stretches go to one file.

    That file is one of the parts that were there `before`, where such a part reaches to the stretch, else a new one.
    """

    def __init__(self, path: Path, header: Header, before: Sequence[Sequence[Part]]) -> None:
        self._path, self._header, self._before = path, header, before
        self._stream: BinaryIO | None = None
        self._next: tuple[int, int] | None = None

    def write(self, stretch: Stretch, records: list[bytes]) -> None:
        """Append the records of a stretch."""
        if self._stream is None or self._next != (stretch.file, stretch.start):
            self.close()
            self._stream = self._open(stretch)
        self._stream.writelines(records)
        self._next = (stretch.file, stretch.stop)

    def close(self) -> None:
        """Close the file."""
        if self._stream is not None:
            self._stream.close()

    def _open(self, stretch: Stretch) -> BinaryIO:
        for part in self._before[stretch.file]:
            if part.start <= stretch.start <= part.stop and (part.file.exists() or not stretch.start):
                stream = part.file.open("ab")
                stream.truncate(part.offset(stretch.start))
                return stream
        whole = self._header.file(self._path, stretch.file)
        return whole.with_stem(f"{whole.stem}-{stretch.start}").open("ab")


def finish(path: Path, header: Header, windows: tuple[np.ndarray, ...]) -> None:
    """Join the parts of every token file, and say that every record is there."""
    for file, numbers in enumerate(windows):
        header.file(path, file).touch()
        while len(found := parts(path, header, file, len(numbers))) > 1:
            _append(*found[:2])
        _truncate(found[0], len(numbers))
        if header.draws:
            np.save(path / f"ends-{file}.npy", found[0].ends)
    _write(path / HEADER, header, files=digests([*path.glob("*.npy"), *path.glob("*.bin")]))


def _append(whole: Part, part: Part) -> None:
    """Move the records of `part` after the end of `whole` there; when interrupted, it can be repeated."""
    assert part.start <= whole.stop
    _truncate(whole, whole.stop)
    if part.stop > whole.stop:
        with whole.file.open("ab") as stream, part.file.open("rb") as source:
            source.seek(part.offset(whole.stop))
            shutil.copyfileobj(source, stream, 1 << 24)
    part.file.unlink()


def _truncate(part: Part, place: int) -> None:
    """Cut off what comes after the record before a place."""
    os.truncate(part.file, part.offset(place))


def _write(file: Path, header: Header, **more: Mapping[str, str]) -> None:
    with atomic_file(file) as temporary:
        temporary.write_text(json.dumps(sealed({**asdict(header), **more}), indent=1) + "\n")


def _read_numbers(file: Path) -> np.ndarray:
    try:
        numbers = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise MinitronError(f"{file} cannot be read: {error}", _AGAIN) from error
    if numbers.ndim != 1 or numbers.dtype != np.int64 or (np.diff(numbers) <= 0).any():
        raise MinitronError(f"{file} does not hold numbers in ascending order", _AGAIN)
    return numbers


def _read_header(file: Path) -> tuple[Header, dict[str, str]]:
    """The header in a file and the sha256 of each recorded file, where it has them."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise MinitronError(f"{file} cannot be read as JSON: {error}", _AGAIN) from error
    if isinstance(found, dict):
        require_unaltered(found, file)
        found.pop(DIGEST, None)
        # A header from before these fields were: documents were always joined, the top k kept, of the same vocabulary.
        found = {"cross_doc": True, "draws": 0, "power": 1.0, "seed": 0, "reader": "", **found}
    files = found.pop("files", {}) if isinstance(found, dict) else {}
    if not isinstance(found, dict) or set(found) != {f.name for f in fields(Header)} or found["format"] != FORMAT:
        raise MinitronError(f"{file} is not the header of a recorded teacher", _AGAIN)
    return Header(**{**found, "tokens_sha256": tuple(found["tokens_sha256"])}), files
