"""Direct reading and writing give the bytes that ordinary reading and writing give, wherever they are refused."""

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from minitron_cli.checkpoint import direct
from minitron_cli.checkpoint.direct import PAGE, Buffers, create, open_reader, write
from minitron_cli.errors import MinitronError

SIZE = 5 * PAGE + 123
RUNS = [(0, 1), (0, PAGE), (1, PAGE), (PAGE, PAGE), (PAGE - 1, 2), (3, SIZE - 3), (0, SIZE), (SIZE - 1, 1), (SIZE, 0)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    made = tmp_path / "source"
    made.write_bytes(np.random.default_rng(0).bytes(SIZE))
    return made


def ordinary_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a system that has no direct I/O."""
    monkeypatch.setattr(direct, "_DIRECT", 0)


def refused_at_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a file system that has none."""
    really = os.open

    def refuse(file: Path, flags: int, mode: int = 0o777) -> int:
        if flags & direct._DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return really(file, flags, mode)

    monkeypatch.setattr(os, "open", refuse)


def refused_at_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a disk that wants other alignments: opened, and then neither read nor written."""
    read, written = os.preadv, os.write

    def refuse(descriptor: int) -> None:
        if direct.fcntl.fcntl(descriptor, direct.fcntl.F_GETFL) & direct._DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")

    def preadv(descriptor: int, views: list[memoryview], offset: int) -> int:
        refuse(descriptor)
        return read(descriptor, views, offset)

    def write_(descriptor: int, block: memoryview) -> int:
        refuse(descriptor)
        return written(descriptor, block)

    monkeypatch.setattr(os, "preadv", preadv)
    monkeypatch.setattr(os, "write", write_)


def by_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call does only a part of what it is asked, as the system may."""
    read, written = os.preadv, os.write
    monkeypatch.setattr(os, "preadv", lambda fd, views, offset: read(fd, [views[0][:1000]], offset))
    monkeypatch.setattr(os, "write", lambda fd, block: written(fd, block[: max(PAGE, len(block) // 3)]))


CIRCUMSTANCES = [lambda monkeypatch: None, ordinary_only, refused_at_open, refused_at_use, by_pieces]


@pytest.fixture(params=CIRCUMSTANCES, ids=["direct", "no system", "no file system", "not at use", "by pieces"])
def circumstance(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Call it when the files that the test needs are there."""
    return lambda: request.param(monkeypatch)


@pytest.mark.parametrize("cached", [True, False])
def test_any_run_of_a_file(cached: bool, file: Path, circumstance: Callable[[], None]) -> None:
    raw = file.read_bytes()
    if not cached:
        drop(file)
    circumstance()
    buffers = Buffers(SIZE + 2 * PAGE)
    with open_reader(file) as reader:
        for begin, length in RUNS:
            buffer = buffers.take(length + 2 * PAGE)
            assert reader.read(begin, length, buffer).tobytes() == raw[begin : begin + length]
            buffers.give_back(buffer)


def drop(file: Path) -> None:
    """Out of the page cache, as far as the system lets us."""
    descriptor = os.open(file, os.O_RDONLY)
    os.fsync(descriptor)
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def test_the_page_cache_stays_as_it_was(file: Path) -> None:
    drop(file)
    with open_reader(file) as reader:
        if reader._direct is None or reader._cached(0, SIZE):
            pytest.skip("no direct I/O here, or no way to empty the cache")
        reader.read(0, SIZE, Buffers(1).take(SIZE + 2 * PAGE))
        assert not reader._cached(0, PAGE)
        file.read_bytes()
        assert reader._cached(0, SIZE)


def test_a_file_that_shrinks_is_refused(file: Path, circumstance: Callable[[], None]) -> None:
    circumstance()
    with open_reader(file) as reader:
        os.truncate(file, PAGE)
        with pytest.raises(MinitronError, match="ended while it was read"):
            reader.read(0, SIZE, Buffers(1).take(SIZE + 2 * PAGE))


@pytest.mark.parametrize("lengths", [[0], [7], [PAGE], [PAGE, 2 * PAGE, 5], [5, 2 * PAGE, 5], [3 * PAGE + 1, 1]])
def test_blocks_are_written_one_behind_the_other(
    lengths: list[int], tmp_path: Path, circumstance: Callable[[], None]
) -> None:
    """Also those that direct writing cannot take: it is only quicker where they are whole pages."""
    circumstance()
    blocks = list(noise(lengths))
    with create(tmp_path / "made", sum(lengths)) as descriptor:
        for block in blocks:
            write(descriptor, block.data)
    assert (tmp_path / "made").read_bytes() == b"".join(block.tobytes() for block in blocks)


def noise(lengths: list[int]) -> Iterator[np.ndarray]:
    generator = np.random.default_rng(1)
    for length in lengths:
        block = Buffers(1).take(length + 2)[:length]
        block[:] = generator.integers(256, size=length, dtype=np.uint8)
        yield block


def test_other_errors_are_not_swallowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, block: memoryview) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with create(tmp_path / "made", PAGE) as descriptor:
        monkeypatch.setattr(os, "write", full)
        with pytest.raises(OSError, match="No space left"):
            write(descriptor, Buffers(PAGE).take(PAGE).data)


def test_buffers_begin_at_a_page_and_come_back() -> None:
    buffers = Buffers(1000)
    one, other, long = buffers.take(1000), buffers.take(10), buffers.take(1001)
    assert [len(buffer) for buffer in (one, other, long)] == [1000, 1000, 1001]
    assert not [b for b in (one, other, long) if b.ctypes.data % PAGE]
    assert not np.shares_memory(one, other)
    for buffer in (one, long):
        buffers.give_back(buffer)
    assert buffers.take(5) is one
    assert buffers.take(5) is not long
