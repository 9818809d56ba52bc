"""A teacher on disk: its k most likely next tokens for every window of some token files, and the mass of all others.

    DIR/plan.json        what is being recorded, written first: only under the same does an interrupted one go on
    DIR/windows-I.npy    which windows of token file I there are, ascending (n,) int64
    DIR/top-I.bin        n records in that order, appended as they are made
    DIR/header.json      the plan again and the sha256 of the files, written last: with it the recording is finished

A record holds, for the seq_len - 1 predictions of its window, ids (uint16 or uint32), log-probabilities and the log of
the rest's probability (float16). Rounding to float16 leaves sums a little off 1: they are normalised when read.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from minitron_cli.checkpoint.atomic import atomic_file
from minitron_cli.checkpoint.disk import make_directory
from minitron_cli.checkpoint.provenance import changed_files, digests
from minitron_cli.checkpoint.seal import DIGEST, require_unaltered, sealed
from minitron_cli.errors import MinitronError
from minitron_cli.training.cached_logits.topk import TopK

PLAN, HEADER, FORMAT = "plan.json", "header.json", "minitron-teacher-1"
_AGAIN = "remove the directory and record the teacher again"


@dataclass(frozen=True, slots=True)
class Header:
    """What a recording is of. `vocab` ids were compared, `top_k` of them kept, at `temperature`."""

    teacher: str  # digest of the model
    tokenizer_hash: str
    tokens_sha256: tuple[str, ...]
    seq_len: int
    top_k: int
    vocab: int
    temperature: float
    cross_doc: bool = True  # whether the teacher saw the documents of a window as one text
    format: str = FORMAT

    def record(self) -> np.dtype:
        """One window on disk."""
        predictions = self.seq_len - 1
        ids = "<u2" if self.vocab <= 1 << 16 else "<u4"
        kept = (predictions, self.top_k)
        return np.dtype([("ids", ids, kept), ("log_probs", "<f2", kept), ("tail", "<f2", (predictions,))])


@dataclass(frozen=True, slots=True, eq=False)
class Recording:
    """An open recording: per token file the window numbers it has, and their records as a memory map.

    `files` maps the name of each file to its sha256; it is empty for a recording that was made without.
    """

    path: Path
    header: Header
    windows: tuple[np.ndarray, ...]
    records: tuple[np.ndarray, ...]
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
        rows = np.empty(len(windows), self.header.record())
        for file in np.unique(files):
            mine = files == file
            rows[mine] = self.records[file][np.searchsorted(self.windows[file], windows[mine])]
        if (largest := int(rows["ids"].max(initial=0))) >= self.header.vocab:
            raise MinitronError(f"{self.path} is damaged: it holds id {largest} of {self.header.vocab}", _AGAIN)
        return Taught(rows)


@dataclass(frozen=True, slots=True, eq=False)
class Taught:
    """Records of some rows: (row,) of `Header.record`."""

    rows: np.ndarray

    def top_k(self, part: slice, device: torch.device) -> TopK:
        """The rows of a micro-batch, flat: seq_len predictions a row, the last one a copy that weighs nothing."""
        rows = self.rows[part]
        log_probs, tail = (_repeat_last(rows[name]).astype(np.float32) for name in ("log_probs", "tail"))
        total = np.logaddexp(np.logaddexp.reduce(log_probs, axis=-1), tail)
        ids = _repeat_last(rows["ids"]).astype(np.int64)
        return TopK(*(_flat(a, device) for a in (ids, log_probs - total[..., None], tail - total)))


def _repeat_last(rows: np.ndarray) -> np.ndarray:
    return np.concatenate([rows, rows[:, -1:]], axis=1)


def _flat(rows: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(rows.reshape(-1, *rows.shape[2:]))).to(device)


def is_recording(path: Path) -> bool:
    return (path / PLAN).is_file() and (path / HEADER).is_file()


def open_recording(path: Path) -> Recording:
    """Open and check a finished recording."""
    header, files = _read_header(path / HEADER)
    windows = tuple(_read_windows(path / f"windows-{i}.npy") for i in range(len(header.tokens_sha256)))
    records = []
    for i, numbers in enumerate(windows):
        file, record = path / f"top-{i}.bin", header.record()
        size = file.stat().st_size if file.is_file() else 0
        if size != len(numbers) * record.itemsize:
            raise MinitronError(
                f"{file} has {size:,} bytes, its plan says {len(numbers) * record.itemsize:,}",
                _AGAIN,
            )
        empty = np.empty(0, record)
        records.append(np.memmap(file, dtype=record, mode="r", shape=(len(numbers),)) if len(numbers) else empty)
    return Recording(path, header, windows, tuple(records), files)


def check_place(path: Path, header: Header, windows: tuple[np.ndarray, ...]) -> None:
    """Refuse a directory that holds anything but a recording of the same plan, finished or not."""
    if (path / PLAN).is_file():
        same = _read_header(path / PLAN)[0] == header
        if not same or any(
            not np.array_equal(_read_windows(path / f"windows-{i}.npy"), w) for i, w in enumerate(windows)
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
    """Make the directory of a recording, or find that of the same plan."""
    check_place(path, header, windows)
    if (path / PLAN).is_file():
        return
    make_directory(path)
    for i, numbers in enumerate(windows):
        np.save(path / f"windows-{i}.npy", numbers)
    _write(path / PLAN, header)


def recorded(path: Path, header: Header, file: int, wanted: int) -> int:
    """How many of the `wanted` whole records of a token file there are; what a kill cut short is dropped."""
    data, size = path / f"top-{file}.bin", header.record().itemsize
    data.touch()
    count = min(data.stat().st_size // size, wanted)
    with data.open("r+b") as stream:
        stream.truncate(count * size)
    return count


def pack(header: Header, top: TopK, rows: int) -> bytes:
    """Records of `rows` windows from TopK of rows * (seq_len - 1) predictions."""
    packed = np.empty(rows, header.record())
    for name, values in (("ids", top.ids), ("log_probs", top.log_probs), ("tail", top.tail)):
        # float16 has nothing below -65504: a rest of probability 0 becomes that, not -inf.
        limited = values.clamp_min(-65504.0) if values.is_floating_point() else values
        packed[name] = limited.cpu().numpy().reshape(packed[name].shape)
    return packed.tobytes()


def finish(path: Path, header: Header) -> None:
    """Say that every record is there."""
    _write(path / HEADER, header, files=digests([*path.glob("windows-*.npy"), *path.glob("top-*.bin")]))


def _write(file: Path, header: Header, **more: Mapping[str, str]) -> None:
    with atomic_file(file) as temporary:
        temporary.write_text(json.dumps(sealed({**asdict(header), **more}), indent=1) + "\n")


def _read_windows(file: Path) -> np.ndarray:
    try:
        windows = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise MinitronError(f"{file} cannot be read: {error}", _AGAIN) from error
    if windows.ndim != 1 or windows.dtype != np.int64 or (np.diff(windows) <= 0).any():
        raise MinitronError(f"{file} does not hold window numbers in ascending order", _AGAIN)
    return windows


def _read_header(file: Path) -> tuple[Header, dict[str, str]]:
    """The header in a file and the sha256 of each recorded file, where it has them."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise MinitronError(f"{file} cannot be read as JSON: {error}", _AGAIN) from error
    if isinstance(found, dict):
        require_unaltered(found, file)
        found.pop(DIGEST, None)
        found.setdefault("cross_doc", True)  # a header from before the field was: documents were always joined
    files = found.pop("files", {}) if isinstance(found, dict) else {}
    if not isinstance(found, dict) or set(found) != {f.name for f in fields(Header)} or found["format"] != FORMAT:
        raise MinitronError(f"{file} is not the header of a recorded teacher", _AGAIN)
    return Header(**{**found, "tokens_sha256": tuple(found["tokens_sha256"])}), files
