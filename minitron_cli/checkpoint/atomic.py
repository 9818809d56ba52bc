"""Outputs appear whole or not at all: written under a temporary name beside the target, then renamed."""

import errno
import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from minitron_cli.errors import MinitronError

MANIFEST = "minitron.json"


def check_output(path: Path, overwrite: bool = False) -> None:
    """Refuse a non-empty output; `overwrite` only ever replaces a directory that carries our manifest."""
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not path.is_dir() or not (path / MANIFEST).is_file():
        raise MinitronError(f"{path} exists and was not made by minitron", "choose another output with -o")
    if not overwrite:
        raise MinitronError(f"{path} exists already", "choose another output with -o, or add --overwrite to replace it")


@contextmanager
def atomic_dir(path: Path, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary directory beside `path` that takes its place when the block ends without an exception."""
    check_output(path, overwrite)
    with _temporary_beside(path) as temporary:
        yield temporary
        _replace(temporary, path)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary file name, renamed onto `path` at the end."""
    with _temporary_beside(path) as directory:
        yield directory / path.name
        (directory / path.name).replace(path)


@contextmanager
def _temporary_beside(path: Path) -> Iterator[Path]:
    """A directory beside `path`, gone at the end whatever happens; what killed runs have left is removed first.

    It is locked while its process lives, so that a stale one is known for what it is, by any process on this system.
    """
    path = Path(os.path.abspath(path))
    temporary = path.with_name(f".{path.name}.minitron-{secrets.token_hex(4)}")
    with _problems_of_the_disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(path)
        temporary.mkdir()
        descriptor = os.open(temporary, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield temporary
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            os.close(descriptor)


@contextmanager
def _problems_of_the_disk(path: Path) -> Iterator[None]:
    """Turn a place that can not be written to, and a disk that is full, into the user's errors."""
    try:
        with disk_full_is_an_error(path):
            yield
    except (PermissionError, NotADirectoryError, FileExistsError) as error:
        raise MinitronError(f"{path} can not be written: {error}", "choose another output with -o") from error
    except OSError as error:
        if error.errno != errno.EROFS:
            raise
        raise MinitronError(f"{path} lies on a read-only disk", "choose another output with -o") from error


@contextmanager
def disk_full_is_an_error(path: Path) -> Iterator[None]:
    """Turn ENOSPC and EDQUOT into the user's error: where it happened and what is free."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        free = shutil.disk_usage(path.parent).free
        raise MinitronError(
            f"no space left for {path} ({free / 1e6:,.1f} MB free on its disk)",
            "free some space or choose another disk with -o; nothing was left behind",
        ) from error


def need_space(path: Path, num_bytes: int) -> None:
    """Refuse before the first byte when the disk of `path` can not take `num_bytes`."""
    parent = next(p for p in path.absolute().parents if p.exists())
    free = shutil.disk_usage(parent).free
    if free < num_bytes:
        raise MinitronError(
            f"{path} needs {num_bytes / 1e6:,.1f} MB and its disk has {free / 1e6:,.1f} MB free",
            "free some space or choose another disk with -o",
        )


def _replace(temporary: Path, path: Path) -> None:
    """Put the finished directory in its place; what it replaces is moved into a stale name first, then removed."""
    if not path.exists():
        temporary.rename(path)
        return
    old = path.with_name(temporary.name + "-old")
    path.rename(old)
    temporary.rename(path)
    shutil.rmtree(old)


def _remove_stale(path: Path) -> None:
    """Remove what a killed run has left beside `path`: directories of our naming that no process holds locked."""
    pattern = re.compile(re.escape(f".{path.name}.minitron-") + r"[0-9a-f]{8}(-old)?")
    for sibling in path.parent.iterdir():
        if not pattern.fullmatch(sibling.name) or not sibling.is_dir():
            continue
        descriptor = os.open(sibling, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(sibling, ignore_errors=True)
        except BlockingIOError:
            continue  # another run of the same line is at work; the last to finish wins
        finally:
            os.close(descriptor)
