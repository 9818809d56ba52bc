"""Outputs appear whole or not at all: written under a temporary name beside the target, then renamed.

    .NAME.minitron-1a2b3c4d   what is being written; locked while its process lives, so a stale one is recognised
    .NAME.minitron-replaced   what --overwrite replaces, until the new result is in its place; locked likewise

A symbolic link as output is written through: its target is made or replaced, the link stays.
"""

import fcntl
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from minitron_cli.checkpoint.disk import check_place, make_directory, write_errors
from minitron_cli.errors import MinitronError

MANIFEST = "minitron.json"
_LONGEST = 200  # bytes of a name that leave room for our own additions; file systems allow 255


def check_output(path: Path, overwrite: bool = False, inputs: Iterable[str | Path] = ()) -> None:
    """Refuse an output directory that overlaps an input, or is not empty.

    `overwrite` only ever replaces a directory that carries our manifest. An input that does not exist (a hub id) is
    ignored.
    """
    check_apart(path, inputs)
    with write_errors(path):
        check_place(path)
        here = _identities(Path.cwd())
        if _identity(path) in here:
            raise MinitronError(
                f"the output {str(path)!r} is the working directory or contains it", "name a new directory with -o"
            )
        if not _exists(path) or (path.is_dir() and not any(path.iterdir())):
            return
    if not path.is_dir() or not (path / MANIFEST).is_file():
        raise MinitronError(f"{path} exists and was not made by minitron", "choose another output with -o")
    if not overwrite:
        raise MinitronError(f"{path} exists already", "choose another output with -o, or add --overwrite to replace it")


def check_file(path: Path, inputs: Iterable[str | Path] = ()) -> None:
    """Refuse an output file that overlaps an input, or whose place is taken by something that is not a file."""
    check_apart(path, inputs)
    with write_errors(path):
        check_place(path)
        if _exists(path) and not path.is_file():
            kind = "a directory" if path.is_dir() else "not a regular file"
            raise MinitronError(f"the output {str(path)!r} is {kind}", "name a file with -o")


def check_apart(path: Path, inputs: Iterable[str | Path]) -> None:
    """Refuse an output that is an input, contains one or is inside one. Inodes are compared: links hide nothing.

    An address of object storage is refused as well: it has no rename that would make a result whole at once.
    """
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(path)):  # a Path has one slash of two
        raise MinitronError(
            f"the output {path} is an address, and results are written to file systems only, where they appear whole",
            "write to a directory (distill, train and shear keep a copy there: --mirror ADDRESS), or mount the storage",
        )
    with write_errors(path):
        output, above = _identity(path), _identities(path)[1:]
        for given in inputs:
            for file in _files_behind(Path(given)):
                chain = _identities(file)
                if output is not None and output == chain[0]:
                    relation = "is"
                elif output in chain[1:]:
                    relation = "contains"
                elif chain[0] in above and file == Path(given):
                    relation = "is inside"
                else:
                    continue
                raise MinitronError(f"the output {path} {relation} the input {given}", "choose another output with -o")


@contextmanager
def atomic_dir(path: Path, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary directory beside `path` that takes its place when the block ends without an exception."""
    check_output(path, overwrite)
    with temporary_beside(path) as (temporary, target):
        yield temporary
        with replacing(target):
            temporary.rename(target)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary file name, renamed onto `path` at the end."""
    check_file(path)
    with temporary_beside(path) as (directory, target):
        yield directory / target.name
        (directory / target.name).replace(target)


class Replaced:
    """The result that a new one replaces, kept beside it as `place` until the new one is complete.

    If the process is killed in between, `place` stays, and whoever replaces or writes `path` next finds it: an
    unfinished replacement (a directory without our manifest) is then discarded in its favour.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(os.path.realpath(path))
        self.place = self.path.with_name(_own_name(self.path, "replaced"))
        self._lock: int | None = None

    def set_aside(self) -> None:
        """Move what is at `path` to `place`. Raises MinitronError where another process is replacing it."""
        self._recover()
        if not _exists(self.place) and _exists(self.path):
            self.path.rename(self.place)
        elif _exists(self.path):
            shutil.rmtree(self.path)  # an unfinished replacement of what is aside
        self._hold()

    def restore(self) -> None:
        """Put the old result back, in place of whatever is at `path`."""
        if _exists(self.place):
            shutil.rmtree(self.path, ignore_errors=True)
            self.place.rename(self.path)
        self.release()

    def discard(self) -> None:
        """Remove the old result: the new one is complete."""
        shutil.rmtree(self.place, ignore_errors=True)
        self.release()

    @property
    def held(self) -> bool:
        """Whether an old result is aside, locked by this process."""
        return self._lock is not None

    def release(self) -> None:
        """Leave both as they are: the new result is unfinished and can be continued."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _recover(self) -> None:
        """Tidy up after a killed process: the old result goes back if `path` is empty, and away if `path` is done."""
        if not _exists(self.place):
            return
        self._hold()
        self.release()
        if not _exists(self.path):
            self.place.rename(self.path)
        elif (self.path / MANIFEST).is_file():
            shutil.rmtree(self.place)

    def _hold(self) -> None:
        if not _exists(self.place):
            return
        self._lock = os.open(self.place, os.O_RDONLY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.release()
            raise MinitronError(f"another process is replacing {self.path}", "wait until it has ended") from None


@contextmanager
def replacing(path: Path) -> Iterator[Replaced]:
    """Keep what is at `path` aside while the block puts a new result there.

    It is removed when the block ends, and put back when the block raises. A block that leaves an unfinished result, to
    be continued later, calls `release()`; the line that completes it calls `Replaced(path).discard()`.
    """
    old = Replaced(path)
    old.set_aside()
    try:
        yield old
    except BaseException:
        old.restore()
        raise
    if old.held:
        old.discard()


@contextmanager
def temporary_beside(path: Path) -> Iterator[tuple[Path, Path]]:
    """(directory beside the target, target): the directory is gone at the end whatever happens.

    The target is `path` with links followed. What killed runs have left is removed first.
    """
    with write_errors(path):
        target = Path(os.path.realpath(path))
        temporary = target.with_name(_own_name(target, secrets.token_hex(4)))
        make_directory(target.parent)
        _remove_stale(target)
        make_directory(temporary)
        descriptor = os.open(temporary, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield temporary, target
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            os.close(descriptor)


def _remove_stale(target: Path) -> None:
    """Remove what a killed run has left beside `target`: directories of our naming that no process holds locked."""
    pattern = re.compile(re.escape(_own_name(target, "")) + r"[0-9a-f]{8}")
    for sibling in target.parent.iterdir():
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


def _own_name(target: Path, suffix: str) -> str:
    """The name of something of ours beside `target`; a name too long to be added to is replaced by its digest."""
    name = target.name
    if len(os.fsencode(name)) > _LONGEST:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()[:16]
    return f".{name}.minitron-{suffix}"


def _exists(path: Path) -> bool:
    """Whether there is anything at `path`; unlike Path.exists, a name that the system refuses is an error."""
    try:
        path.stat()
    except FileNotFoundError:
        return False
    return True


def _identity(path: Path) -> tuple[int, int] | None:
    """(device, inode) of what `path` leads to, or None where nothing is there."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _identities(path: Path) -> list[tuple[int, int] | None]:
    """Identities of `path` and of every directory above it, links followed."""
    path = Path(os.path.realpath(path))
    return [_identity(place) for place in (path, *path.parents)]


def _files_behind(given: Path) -> Iterator[Path]:
    """An input, and what the links inside it lead to: the files of a hub snapshot are links to elsewhere."""
    if not given.exists():
        return
    yield given
    for directory, names, files in os.walk(given):
        for entry in (*names, *files):
            link = Path(directory, entry)
            if link.is_symlink() and link.exists():
                yield link
