"""Errors of the system while a file is written, as one error for the user; checks for space and permission."""

import errno
import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from minitron_cli.errors import MinitronError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_CAUSES = (
    *_FULL, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENAMETOOLONG, errno.ENOTDIR,
    errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY, errno.ELOOP, errno.EBUSY, errno.EXDEV, errno.ENXIO, errno.ESTALE,
    errno.ETXTBSY, errno.EMFILE, errno.ENFILE,
)  # fmt: skip
_RUST = re.compile(r"\(os error (\d+)\)")  # how safetensors reports an error of the system


@contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Turn every error of the system while `path` is written into one MinitronError; bugs keep their traceback."""
    try:
        yield
    except Exception as error:
        number = _system_error(error)
        if isinstance(error, MinitronError) or number not in _CAUSES:
            raise
        raise _explained(path, number) from error


def make_directory(path: Path) -> None:
    """Make a directory and those above it; one that is there already is fine."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileNotFoundError as error:  # not for want of a parent: /proc and the like answer so
        raise MinitronError(
            f"{path} cannot be written: the system makes no directories there", "choose another output with -o"
        ) from error


@contextmanager
def held(directory: Path, busy: str, hint: str) -> Iterator[None]:
    """Hold a directory, for as long as this process lives at most; `busy` is the error where another one holds it.

    On disks without locks nothing is held.
    """
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise MinitronError(busy, hint) from None
        except OSError:
            pass
        yield
    finally:
        os.close(descriptor)


def check_place(path: Path) -> None:
    """Refuse a path where nothing can be written: before the work, not after it."""
    parent = _existing_parent(path)
    if not os.access(parent, os.W_OK | os.X_OK):
        raise MinitronError(f"{path} cannot be written: no permission in {parent}", "choose another output with -o")
    if shutil.disk_usage(parent).total == 0:  # /proc and the like
        raise MinitronError(f"{path} cannot be written: {parent} takes no files", "choose another output with -o")


def need_space(path: Path, num_bytes: int) -> None:
    """Refuse before the first byte when the disk of `path` cannot take `num_bytes`."""
    free = _free(path)
    if free < num_bytes:
        raise MinitronError(
            f"{path} needs {num_bytes / 1e6:,.1f} MB and its disk has {free / 1e6:,.1f} MB free",
            "free some space or choose another disk with -o",
        )


def _system_error(error: BaseException | None) -> int | None:
    """The errno of an exception, of what it was raised from, or of the text that a Rust library gives."""
    while error is not None:
        if isinstance(error, OSError) and error.errno is not None:
            return error.errno
        if found := _RUST.search(str(error)):
            return int(found[1])
        error = error.__cause__ or error.__context__
    return None


def _explained(path: Path, number: int) -> MinitronError:
    if number in _FULL:
        return MinitronError(
            f"no space left for {path} ({_free(path) / 1e6:,.1f} MB free on its disk)",
            "free some space or choose another disk with -o",
        )
    if number == errno.EROFS:
        return MinitronError(f"{path} is on a read-only disk", "choose another output with -o")
    if number == errno.EFBIG:
        return MinitronError(
            f"{path} cannot be written: a file would exceed the size that the system allows",
            "raise the limit (ulimit -f), choose another disk with -o, or make smaller files (--max-shard-size)",
        )
    return MinitronError(f"{path} cannot be written: {os.strerror(number).lower()}", "choose another output with -o")


def _free(path: Path) -> int:
    """Bytes free on the disk of `path`, which need not exist."""
    return shutil.disk_usage(_existing_parent(path)).free


def _existing_parent(path: Path) -> Path:
    return next(p for p in path.absolute().parents if p.exists())
