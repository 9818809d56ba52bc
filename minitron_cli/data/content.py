"""Content hashes of files, remembered for large ones."""

import hashlib
import json
from pathlib import Path

from minitron_cli.checkpoint.atomic import atomic_file
from minitron_cli.checkpoint.provenance import file_digest

# Below this a file is read again every time, so that a change within the clock's resolution cannot go unseen.
_REMEMBER_BYTES = 256 << 20


def file_sha256(file: Path, cache: Path) -> str:
    """Hex sha256 of `file`; that of a large file is remembered under `cache` until its size or time changes."""
    status = file.stat()
    if status.st_size < _REMEMBER_BYTES:
        return file_digest(file)
    stamp = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
    memory = cache / "hashes" / f"{hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:32]}.json"
    if memory.is_file():
        found = json.loads(memory.read_text(encoding="utf-8"))
        if found["stamp"] == stamp:
            return found["sha256"]
    digest = file_digest(file)
    with atomic_file(memory) as temporary:
        temporary.write_text(json.dumps({"stamp": stamp, "sha256": digest}), encoding="utf-8")
    return digest
