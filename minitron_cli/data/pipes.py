"""Pipes as sources: `-`, /dev/stdin and named pipes are copied to a file, since a source is read more than once."""

import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from minitron_cli.errors import MinitronError

STDIN = ("-", "/dev/stdin")
_HEAD = 1 << 12
_DESCRIPTORS = ("/dev/fd/", "/proc/self/fd/")


def is_pipe(where: str) -> bool:
    """Whether a source can be read only once: standard input, a descriptor of the shell's, a named pipe, a device."""
    if where in STDIN or where.startswith(_DESCRIPTORS):
        return True
    try:
        mode = os.stat(Path(where).expanduser()).st_mode
    except (OSError, ValueError):
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


@contextmanager
def spooled(specs: Sequence[str], directory: Path) -> Iterator[list[str]]:
    """The sources, with a temporary file under `directory` in the place of each pipe.

    Its kind is seen from its first bytes: JSON lines, a JSON array, Parquet, else plain text.
    """
    if len([spec for spec in specs if spec in STDIN]) > 1:
        raise MinitronError("standard input is named twice", "it can be read once: give - once")
    if not any(map(is_pipe, specs)):
        yield list(specs)
        return
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="pipe-", dir=directory) as folder:
        yield [str(_copy(spec, Path(folder) / str(n))) if is_pipe(spec) else spec for n, spec in enumerate(specs)]


def _copy(spec: str, folder: Path) -> Path:
    folder.mkdir()
    place = Path(spec).expanduser()
    if spec in STDIN:
        if sys.stdin.isatty():
            raise MinitronError("- reads standard input, which is the terminal", "pipe text into the command")
        return _copy_stream(sys.stdin.buffer, folder, "stdin", "standard input")
    if place.is_block_device():
        raise MinitronError(f"{spec} is a disk", "give a file, a directory or a pipe")
    with place.open("rb") as stream:
        return _copy_stream(stream, folder, place.name, spec)


def _copy_stream(stream: BinaryIO, folder: Path, name: str, shown: str) -> Path:
    head = stream.read(_HEAD)
    if not head:
        raise MinitronError(f"{shown} is empty", "did the command that writes to it fail?")
    file = folder / f"{Path(name).stem}{_suffix(head)}"
    with file.open("wb") as out:
        out.write(head)
        shutil.copyfileobj(stream, out)
    return file


def _suffix(head: bytes) -> str:
    if head.startswith(b"PAR1"):
        return ".parquet"
    return {b"{": ".jsonl", b"[": ".json"}.get(head.lstrip()[:1], ".txt")
