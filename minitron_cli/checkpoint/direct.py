"""Reading and writing large files past the page cache, where the system can.

A page of cache for every 4 KB that pass by once costs several times the processor time of moving them, and pushes out
what other programs keep there. So files are read and written directly (O_DIRECT) where the file system takes it, and
the ordinary way where it does not; what is in the cache already is taken from there.
"""

import ctypes
import errno
import fcntl
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np

from minitron_cli.checkpoint.writer import reserve
from minitron_cli.errors import MinitronError

PAGE = mmap.PAGESIZE  # memory, offsets and lengths of direct I/O are multiples of it
_DIRECT = getattr(os, "O_DIRECT", 0)


class Buffers:
    """Memory for blocks, to be used again and again: the first touch of fresh memory costs a fault for every page."""

    def __init__(self, num_bytes: int) -> None:
        self._num_bytes = num_bytes
        self._free: list[np.ndarray] = []

    def take(self, num_bytes: int) -> np.ndarray:
        """uint8 (at least num_bytes,) that begins at a page; unusual lengths are made to measure."""
        if num_bytes > self._num_bytes:
            return _aligned(num_bytes)
        try:
            return self._free.pop()
        except IndexError:
            return _aligned(self._num_bytes)

    def give_back(self, buffer: np.ndarray) -> None:
        """The buffer, whole as it was taken, may be used for something else from now on."""
        if len(buffer) == self._num_bytes:
            self._free.append(buffer)


def _aligned(num_bytes: int) -> np.ndarray:
    memory = np.empty(num_bytes + PAGE, dtype=np.uint8)
    begin = -memory.ctypes.data % PAGE
    return memory[begin : begin + num_bytes]


class Reader:
    """A file that is read run by run; `open_reader` makes and closes one."""

    def __init__(self, file: Path, plain: int, direct: int | None, pages: mmap.mmap) -> None:
        self._file, self._plain, self._direct = file, plain, direct
        self._pages = np.frombuffer(pages, dtype=np.uint8)

    def read(self, begin: int, num_bytes: int, buffer: np.ndarray) -> np.ndarray:
        """Bytes begin .. begin + num_bytes, as a view of `buffer`, which must have room for two pages more."""
        first = begin // PAGE * PAGE
        end = begin + num_bytes - first
        view = buffer[: -(-end // PAGE) * PAGE].data
        done = 0
        if self._direct is not None and not self._cached(first, end):
            done = _read_directly(self._direct, view, first)
        while done < end:
            count = os.preadv(self._plain, [view[done:end]], first + done)
            if count == 0:
                raise MinitronError(f"{self._file} ended while it was read", "is it being written? fetch it again")
            done += count
        return buffer[begin - first : end]

    def _cached(self, begin: int, num_bytes: int) -> bool:
        """Whether all these bytes lie in the page cache."""
        present = np.zeros(-(-num_bytes // PAGE), dtype=np.uint8)
        address = ctypes.c_void_p(self._pages.ctypes.data + begin)
        failed = _libc().mincore(address, ctypes.c_size_t(num_bytes), ctypes.c_void_p(present.ctypes.data))
        return not failed and bool((present & 1).all())


@contextmanager
def open_reader(file: Path) -> Iterator[Reader]:
    """Open a file that is not empty, to be read once."""
    plain = os.open(file, os.O_RDONLY)
    direct = _open(file, os.O_RDONLY) if _DIRECT else None
    try:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(plain, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        yield Reader(file, plain, direct, mmap.mmap(plain, 0, prot=mmap.PROT_READ))
    finally:
        os.close(plain)
        if direct is not None:
            os.close(direct)


@contextmanager
def create(file: Path, num_bytes: int) -> Iterator[int]:
    """A descriptor for `write`, of a new file that will have `num_bytes`; space is set aside for it at once."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    descriptor = _open(file, flags)
    if descriptor is None:
        descriptor = os.open(file, flags, 0o666)
    try:
        reserve(descriptor, num_bytes)
        yield descriptor
    finally:
        os.close(descriptor)


def write(descriptor: int, block: memoryview) -> None:
    """Write all of a block at the descriptor's position.

    A block that begins at a page of memory and of the file goes directly but for what is less than a page at its end;
    that, and whatever the file system does not take directly, goes the ordinary way, and so does the file from there.
    """
    while block:
        whole = len(block) // PAGE * PAGE
        if not whole:
            _make_plain(descriptor)
        try:
            block = block[os.write(descriptor, block[: whole or len(block)]) :]
        except OSError as error:
            if error.errno != errno.EINVAL or not _make_plain(descriptor):
                raise


def _open(file: Path, flags: int) -> int | None:
    """A descriptor for direct I/O, or None where the file system has none."""
    try:
        return os.open(file, flags | _DIRECT, 0o666)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return None


def _read_directly(descriptor: int, view: memoryview, offset: int) -> int:
    """The number of bytes that were read; fewer than asked, or none, where direct I/O does not go on."""
    try:
        return os.preadv(descriptor, [view], offset)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return 0


def _make_plain(descriptor: int) -> bool:
    """Have a descriptor go through the page cache from now on; whether it did not before."""
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    if not flags & _DIRECT:
        return False
    fcntl.fcntl(descriptor, fcntl.F_SETFL, flags & ~_DIRECT)
    return True


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
