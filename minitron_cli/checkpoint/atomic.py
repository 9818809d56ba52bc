"""Outputs appear whole or not at all: written under a temporary name beside the target, then renamed."""

import errno
import os
import re
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
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(path)
    temporary = path.with_name(f".{path.name}.minitron-{os.getpid()}")
    temporary.mkdir()
    try:
        with disk_full_is_an_error(path):
            yield temporary
        _replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary file name beside `path`, renamed onto it at the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.minitron-{os.getpid()}")
    try:
        with disk_full_is_an_error(path):
            yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


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
            f"no space left for {path} ({free / 1e6:.0f} MB free on its disk)",
            "free some space or choose another disk with -o; nothing was left behind",
        ) from error


def need_space(path: Path, num_bytes: int) -> None:
    """Refuse before the first byte when the disk of `path` can not take `num_bytes`."""
    parent = next(p for p in path.absolute().parents if p.exists())
    free = shutil.disk_usage(parent).free
    if free < num_bytes:
        raise MinitronError(
            f"{path} needs {num_bytes / 1e6:,.0f} MB and its disk has {free / 1e6:,.0f} MB free",
            "free some space or choose another disk with -o",
        )


def _replace(temporary: Path, path: Path) -> None:
    if path.exists():
        old = path.with_name(f".{path.name}.minitron-old-{os.getpid()}")
        path.rename(old)
        temporary.rename(path)
        shutil.rmtree(old)
    else:
        temporary.rename(path)


def _remove_stale(path: Path) -> None:
    """Remove what a killed run of a process that no longer lives has left beside `path`."""
    pattern = re.compile(re.escape(f".{path.name}.minitron-") + r"(?:old-)?(\d+)")
    for sibling in path.parent.iterdir():
        found = pattern.fullmatch(sibling.name)
        if found and not _alive(int(found.group(1))):
            shutil.rmtree(sibling, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
