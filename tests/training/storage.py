"""File systems of fsspec's for the tests of mirrors: one in memory, and local ones that fail, wait or kill."""

import os
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem


def untroubled(operation: str, path: str) -> None:
    """Nothing is wrong."""


class Troubled(LocalFileSystem):
    """The local disk at `trouble://`; `trouble(operation, path)` is called before what asks or changes something."""

    protocol = "trouble"
    cachable = False
    trouble: Callable[[str, str], None] = staticmethod(untroubled)

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "auto_mkdir": True})

    def put_file(self, path1: str, path2: str, callback: Any = None, **options: Any) -> None:
        type(self).trouble("put", path2)
        super().put_file(path1, path2, callback=callback, **options)

    def pipe_file(self, path: str, value: bytes, *arguments: Any, **options: Any) -> None:
        type(self).trouble("pipe", path)
        super().pipe_file(path, value, *arguments, **options)

    def cat_file(self, path: str, *arguments: Any, **options: Any) -> bytes:
        type(self).trouble("cat", path)
        return super().cat_file(path, *arguments, **options)

    def get_file(self, path1: str, path2: Any, *arguments: Any, **options: Any) -> None:
        type(self).trouble("get", path1)
        super().get_file(path1, path2, *arguments, **options)

    def ls(self, path: str, detail: bool = False, **options: Any) -> list:
        type(self).trouble("ls", path)
        return super().ls(path, detail=detail, **options)

    def rm(self, path: str, recursive: bool = False, maxdepth: int | None = None) -> None:
        type(self).trouble("rm", path)
        super().rm(path, recursive=recursive, maxdepth=maxdepth)


fsspec.register_implementation("trouble", Troubled, clobber=True)


class NowAndThen:
    """Fails at every `every`-th operation, as a network does."""

    def __init__(self, every: int) -> None:
        self.every, self.count, self.lock = every, 0, threading.Lock()

    def __call__(self, operation: str, path: str) -> None:
        with self.lock:
            self.count += 1
            if self.count % self.every == 0:
                raise ConnectionResetError(f"connection lost at operation {self.count}")


class KillsItself:
    """Kills the process in the middle of the `at`-th copy: half of the file is there."""

    def __init__(self, at: int) -> None:
        self.left = at

    def __call__(self, operation: str, path: str) -> None:
        if operation == "put":
            self.left -= 1
            if self.left == 0:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                Path(path).write_bytes(b"{" * 100)
                os.kill(os.getpid(), signal.SIGKILL)


def content(directory: Path) -> dict[str, bytes]:
    """What a directory of this disk holds, by path."""
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def content_at(url: str) -> dict[str, bytes]:
    """What an address holds, by path below it."""
    fs, root = fsspec.core.url_to_fs(url)
    return {path.removeprefix(root).lstrip("/"): fs.cat_file(path) for path in sorted(fs.find(root))}


def clear(directory: Path) -> None:
    """Another machine: nothing is there."""
    shutil.rmtree(directory)
