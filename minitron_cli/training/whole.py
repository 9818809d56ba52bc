"""Directories at an address that are whole there or do not count: saved steps and students.

The file of a directory that lists the sha256 of the others (state.json, minitron.json) is copied last, removed first.
A directory's name is its path below the address, "" for that itself.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from minitron_cli.checkpoint.disk import need_space
from minitron_cli.checkpoint.provenance import changed_files, read_manifest
from minitron_cli.errors import MinitronError
from minitron_cli.spec.counts import bytes_text
from minitron_cli.training.remote import Remote
from minitron_cli.training.step_files import STATE, Damaged, read_state


def copy(remote: Remote, directory: Path, name: str, last: str, again: bool = False) -> None:
    """Copy a directory whose file `last` lists the others, unless it is there; `again`: in any case."""
    content = (directory / last).read_bytes()
    if not again and remote.read(_below(name, last)) == content:
        return
    remove(remote, name, last)
    for file in json.loads(content)["files"]:
        remote.put(directory / file, _below(name, file))
    remote.replace(directory / last, _below(name, last))


def remove(remote: Remote, name: str, last: str) -> None:
    """Remove a directory; of the address itself, beside which others lie, the file that makes it count."""
    remote.remove(_below(name, last))
    if name:
        remote.remove(name)


def fetch(remote: Remote, name: str, last: str, target: Path, say: Callable[[str], None]) -> bool:
    """Fetch a directory to `target`, where it appears once every file is what was copied; False where it is not there.

    Raises Damaged where one is missing or changed.
    """
    if remote.read(_below(name, last)) is None:
        return False
    temporary = target.with_name(f".{target.name.removeprefix('.')}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        _download(remote, name, last, temporary, say)
    except Damaged:
        shutil.rmtree(temporary)
        raise
    shutil.rmtree(target, ignore_errors=True)
    temporary.rename(target)
    return True


def _download(remote: Remote, name: str, last: str, temporary: Path, say: Callable[[str], None]) -> None:
    where = f"{remote}/{name}".rstrip("/")
    remote.get(_below(name, last), temporary / last)
    try:
        content = read_state(temporary) if last == STATE else read_manifest(temporary)
        files = {str(file): str(digest) for file, digest in (content or {})["files"].items()}
    except (MinitronError, KeyError, AttributeError) as error:
        raise Damaged(f"{where} is damaged: {error}".replace(str(temporary), where)) from error
    if strange := [file for file in files if PurePosixPath(file).is_absolute() or ".." in file.split("/")]:
        raise Damaged(f"{where} is damaged: it lists {', '.join(strange)}")
    sizes = {file: remote.size(_below(name, file)) for file in files}
    if missing := [file for file, size in sizes.items() if size is None]:
        raise Damaged(f"{where} is damaged: {', '.join(missing)} missing")
    total = sum(size or 0 for size in sizes.values())
    need_space(temporary, total)
    say(f"fetching {where} ({bytes_text(total)})")
    for file in files:
        (temporary / file).parent.mkdir(parents=True, exist_ok=True)
        remote.get(_below(name, file), temporary / file)
    if wrong := changed_files(temporary, files):
        raise Damaged(f"{where} is damaged: {'; '.join(wrong)}")


def _below(name: str, file: str) -> str:
    return f"{name}/{file}" if name else file
