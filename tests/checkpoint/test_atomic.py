"""Outputs: where they may be, that they appear whole, and what becomes of what they replace."""

import errno
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from minitron_cli.checkpoint.atomic import (
    MANIFEST,
    Replaced,
    atomic_dir,
    atomic_file,
    check_apart,
    check_output,
    replacing,
)
from minitron_cli.checkpoint.disk import write_errors
from minitron_cli.errors import MinitronError


def artefact(path: Path, text: str = "old") -> Path:
    """A directory that carries our manifest and one file with `text`."""
    path.mkdir(parents=True)
    (path / MANIFEST).write_text("{}")
    (path / "content").write_text(text)
    return path


def names(place: Path) -> list[str]:
    return sorted(f.name for f in place.iterdir())


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="there is no /proc")
@pytest.mark.parametrize("place", ["/proc/x", "/proc/x/y"])
def test_a_place_where_nothing_can_be_made_is_named(place: str) -> None:
    with pytest.raises(MinitronError, match="cannot be written"), atomic_file(Path(place)):
        raise AssertionError("nothing can be written here")


def hard_link(place: Path) -> tuple[Path, Path]:
    (place / "scores").write_text("x")
    os.link(place / "scores", place / "other")
    return place / "other", place / "scores"


def snapshot(place: Path) -> tuple[Path, Path]:
    """A model directory whose weights are links into another directory, as in the hub's cache."""
    blobs = artefact(place / "blobs")
    (place / "model").mkdir()
    (place / "model" / "weights").symlink_to(blobs / "content")
    return blobs, place / "model"


def behind_links(place: Path) -> tuple[Path, Path]:
    model = artefact(place / "real" / "model")
    (place / "link").symlink_to(place / "real")
    return place / "link" / "model", model


OVERLAPS: dict[str, tuple[Callable[[Path], tuple[Path, Path]], str]] = {
    "itself": (lambda p: (artefact(p / "a"), p / "x" / ".." / "a"), "is the input"),
    "above": (lambda p: (p, artefact(p / "a")), "contains the input"),
    "inside": (lambda p: (artefact(p / "a") / "new" / "deep", p / "a"), "is inside the input"),
    "a symbolic link to it": (behind_links, "is the input"),
    "a hard link to it": (hard_link, "is the input"),
    "where its links lead": (snapshot, "contains the input"),
}


@pytest.mark.parametrize("case", OVERLAPS)
def test_an_output_that_overlaps_an_input_is_refused(case: str, tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    make, relation = OVERLAPS[case]
    output, given = make(tmp_path)
    with pytest.raises(MinitronError, match=relation):
        check_apart(output, ["org/of-the-hub", given])


def test_neighbours_do_not_overlap(tmp_path: Path) -> None:
    given = artefact(tmp_path / "model")
    check_output(tmp_path / "model-small", inputs=[given, "org/model"])
    check_output(tmp_path / "new" / "model", inputs=[given])


def test_the_working_directory_is_no_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = artefact(tmp_path / "a") / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    for output in (".", "", "..", str(here)):
        with pytest.raises(MinitronError, match="is the working directory or contains it"):
            check_output(Path(output), overwrite=True)
        with pytest.raises(MinitronError, match="is a directory"), atomic_file(Path(output)):
            pass


def test_names_at_and_beyond_the_limit_of_the_file_system(tmp_path: Path) -> None:
    with pytest.raises(MinitronError, match="file name too long"):
        check_output(tmp_path / ("x" * 300))
    with pytest.raises(MinitronError, match="file name too long"), atomic_file(tmp_path / ("x" * 300)):
        pass
    longest = tmp_path / ("x" * 255)
    with atomic_dir(longest) as temporary:
        (temporary / "content").touch()
    assert names(tmp_path) == [longest.name]


def test_a_link_is_written_through(tmp_path: Path) -> None:
    artefact(tmp_path / "disk" / "real")
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "real")
    (tmp_path / "file").symlink_to(tmp_path / "disk" / "dangling")
    with atomic_dir(tmp_path / "link", overwrite=True) as temporary:
        (temporary / "content").write_text("new")
    with atomic_file(tmp_path / "file") as file:
        file.write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").is_symlink()
    assert (tmp_path / "disk" / "real" / "content").read_text() == "new"
    assert (tmp_path / "disk" / "dangling").read_text() == "new"
    assert names(tmp_path) == ["disk", "file", "link"]
    assert names(tmp_path / "disk") == ["dangling", "real"]


def test_devices_and_pipes_are_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(MinitronError, match="is not a regular file"), atomic_file(tmp_path / "pipe"):
        pass
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO])
@pytest.mark.parametrize("through", ["the system", "a Rust library", "a wrapping exception"])
def test_every_write_error_is_one_message_and_leaves_nothing(number: int, through: str, tmp_path: Path) -> None:
    def fail() -> None:
        error = OSError(number, os.strerror(number))
        if through == "the system":
            raise error
        if through == "a Rust library":
            raise RuntimeError(f"Error while serializing: I/O error: {os.strerror(number)} (os error {number})")
        raise RuntimeError("writer failed") from error

    artefact(tmp_path / "out")
    with pytest.raises(MinitronError) as caught, atomic_dir(tmp_path / "out", overwrite=True):
        fail()
    assert str(tmp_path / "out") in caught.value.message
    assert caught.value.hint
    assert names(tmp_path) == ["out"]
    assert (tmp_path / "out" / "content").read_text() == "old"


def test_a_bug_stays_a_bug(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), write_errors(tmp_path / "out"):
        _ = 1 / 0


def test_the_old_result_comes_back_when_the_new_one_fails(tmp_path: Path) -> None:
    out = artefact(tmp_path / "out")

    def fail_halfway() -> None:
        assert not out.exists()
        out.mkdir()
        (out / "half").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), replacing(out):
        fail_halfway()
    assert names(tmp_path) == ["out"]
    assert (out / "content").read_text() == "old"


def test_the_old_result_goes_when_the_new_one_is_complete(tmp_path: Path) -> None:
    out = artefact(tmp_path / "out")
    with replacing(out):
        artefact(out, "new")
    assert names(tmp_path) == ["out"]
    assert (out / "content").read_text() == "new"


def test_an_unfinished_new_result_keeps_the_old_one_until_it_is_complete(tmp_path: Path) -> None:
    out = artefact(tmp_path / "out")
    with replacing(out) as old:
        out.mkdir()
        old.release()
    assert (Replaced(out).place / "content").read_text() == "old"
    Replaced(out).discard()  # by the line that completes it
    assert names(tmp_path) == ["out"]


def test_two_processes_do_not_replace_the_same(tmp_path: Path) -> None:
    out = artefact(tmp_path / "out")
    with replacing(out):
        artefact(out, "new")
        with pytest.raises(MinitronError, match="another process is replacing"), replacing(out):
            pass
    assert (out / "content").read_text() == "new"


def _replace_and_die(out: Path, leave: str) -> None:
    with replacing(out):
        if leave == "unfinished":
            out.mkdir()
        if leave == "finished":
            artefact(out, "new")
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(("leave", "kept"), [("nothing", "old"), ("unfinished", "old"), ("finished", "new")])
def test_killed_while_replacing(leave: str, kept: str, tmp_path: Path) -> None:
    """The next line that replaces the output, and fails, leaves the last finished result in its place."""
    out = artefact(tmp_path / "out")
    process = multiprocessing.get_context("spawn").Process(target=_replace_and_die, args=(out, leave))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    with pytest.raises(RuntimeError, match="again"), replacing(out):
        raise RuntimeError("again")
    assert (out / "content").read_text() == kept
    assert names(tmp_path) == ["out"]
