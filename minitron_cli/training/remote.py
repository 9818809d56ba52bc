"""Files at an address of fsspec's: s3://, gs://, file:// and whatever else has a package. Failures are tried again."""

import os
import secrets
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from minitron_cli.checkpoint.atomic import check_apart
from minitron_cli.errors import MinitronError
from minitron_cli.training.patience import AT_START, Tries

PROBE = ".minitron-"  # how the names of what is written to see whether something can be begin
_LOCAL = ("file", "local")
_EXAMPLES = "s3://bucket/run, gs://bucket/run or file:///disk/run"

T = TypeVar("T")


class Remote:
    """The files below `url`, by their names relative to it. `stopped` ends the waits between tries.

    Methods raise MinitronError after as many tries as `patience` allows.
    """

    def __init__(self, url: str) -> None:
        self.url, self.patience, self.stopped = url.rstrip("/"), AT_START, threading.Event()
        self._fs, self._root = connect(self.url)

    def __str__(self) -> str:
        return self.url

    def put(self, file: Path, name: str) -> None:
        """Copy a local file there."""
        self._try("written", name, lambda at: self._fs.put_file(str(file), at))

    def replace(self, file: Path, name: str) -> None:
        """Copy a local file over one that is there; until the new one is complete the old one stays."""
        folder, _, last = self._at(name).rpartition("/")
        beside = f"{folder}/{PROBE}{last}"

        def carry(at: str) -> None:
            self._fs.put_file(str(file), beside)
            self._fs.mv(beside, at)

        self._try("written", name, carry)

    def get(self, name: str, file: Path) -> None:
        """Copy a file from there."""
        self._try("read", name, lambda at: self._fs.get_file(at, str(file)))

    def read(self, name: str) -> bytes | None:
        """The content of a file, None where it is not there."""
        return self._try("read", name, lambda at: _or_nothing(self._fs.cat_file, at))

    def size(self, name: str) -> int | None:
        """Bytes of a file, None where it is not there."""
        return self._try("read", name, lambda at: _or_nothing(self._fs.size, at))

    def names(self, below: str = "") -> list[str]:
        """What is directly below a name, ascending; empty where there is nothing."""

        def ask(at: str) -> list[str]:
            self._fs.invalidate_cache()
            found = _or_nothing(self._fs.ls, at, detail=False) or []
            paths = (str(path).rstrip("/") for path in found)
            return sorted(path.rpartition("/")[2] for path in paths if path != at)

        return self._try("listed", below, ask)

    def remove(self, name: str) -> None:
        """Remove a file, or everything below a name; what is not there may stay so."""

        def go(at: str) -> None:
            self._fs.invalidate_cache()
            if self._fs.exists(at):
                self._fs.rm(at, recursive=True)

        self._try("removed", name, go)

    def check_writable(self) -> None:
        """Write, read and remove a few bytes."""
        folder = PROBE + secrets.token_hex(4)
        self._try("written", f"{folder}/probe", lambda at: self._fs.pipe_file(at, b"minitron"))
        self.read(f"{folder}/probe")
        self.remove(folder)

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def _try(self, done: str, name: str, call: Callable[[str], T]) -> T:
        tried, problem = 0, ""
        for _ in Tries(self.patience.tries, self.stopped):
            tried += 1
            try:
                return call(self._at(name))
            except Exception as error:
                if not _is_failure(error):
                    raise
                said = getattr(error, "strerror", None) or error
                problem = " ".join(str(said).split()) or type(error).__name__
        times = "1 try" if tried == 1 else f"{tried} tries"
        raise MinitronError(
            f"{self.url}{'/' if name else ''}{name} cannot be {done} after {times}: {problem}",
            "is the address right, and do the credentials in this environment allow it?",
        )


def connect(url: str) -> tuple[Any, str]:
    """fsspec's file system for an address, and the address as that names it. Nothing is asked of it yet."""
    from fsspec.core import url_to_fs
    from fsspec.registry import known_implementations

    try:
        parts = urlsplit(url)
        if parts.password is not None or parts.query:
            raise MinitronError(
                "the address of --mirror has a password or a query in it, which would be written down",
                "give the address alone; credentials come from the environment or the files of the storage's own tools",
            )
    except ValueError:
        parts = urlsplit("")
    if not parts.scheme or "://" not in url:
        raise MinitronError(f"--mirror {url} is not an address", f"write it like {_EXAMPLES}")
    try:
        fs, root = url_to_fs(url, **({"auto_mkdir": True} if parts.scheme in _LOCAL else {}))
    except ImportError as error:
        package = known_implementations[parts.scheme]["class"].partition(".")[0]
        raise MinitronError(
            f"--mirror {url}: {parts.scheme}:// needs a package that is not installed ({error})",
            f"pip install {package}",
        ) from error
    except ValueError as error:
        raise MinitronError(f"--mirror {url}: {error}", f"write it like {_EXAMPLES}") from error
    return fs, root.rstrip("/")


def _or_nothing(call: Callable[..., T], *args: Any, **options: Any) -> T | None:
    try:
        return call(*args, **options)
    except FileNotFoundError:
        return None


def _is_failure(error: Exception) -> bool:
    """Whether a storage system says it: each package has exceptions of its own. Python's others are bugs."""
    return isinstance(error, OSError | ValueError | RuntimeError) or type(error).__module__ != "builtins"


def check_address(url: str, output: Path, inputs: Iterable[str | Path]) -> None:
    """Refuse an address that cannot be understood or has no package, and one on this disk that overlaps the run."""
    _, root = connect(url)
    if urlsplit(url).scheme not in _LOCAL:
        return
    check_apart(Path(root), inputs)
    mine, other = (Path(os.path.realpath(path)) for path in (root, output))
    if mine == other or mine in other.parents or other in mine.parents:
        raise MinitronError(f"--mirror {url} and the output {output} overlap", f"write it like {_EXAMPLES}")
