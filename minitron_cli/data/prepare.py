"""Sources -> token files. Raw text is tokenised once into a cache, keyed by its content; token directories are used as
they are.

Work in progress lies beside its target in `.NAME.minitron-parts`: a killed run goes on where it was, a second process
that wants the same file waits for the first.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minitron_cli.checkpoint.atomic import atomic_dir, check_output
from minitron_cli.checkpoint.disk import make_directory, need_space
from minitron_cli.data.content import file_sha256
from minitron_cli.data.encode import Encoding, Part, Progress, Task, encode_all
from minitron_cli.data.join import join_parts
from minitron_cli.data.readers import PIECE_BYTES, Fields, find_fields, split_file, split_hub
from minitron_cli.data.source import HubName, Source
from minitron_cli.data.tokenizer import TextTokenizer, load_tokenizer, separator_ids
from minitron_cli.data.tokens import (
    DOCUMENT,
    FORMAT_VERSION,
    HEADER,
    Header,
    TokenFile,
    id_type,
    is_token_directory,
    read_header,
)
from minitron_cli.errors import MinitronError

Finish = Callable[[Path, Header], None]


@dataclass(frozen=True, slots=True)
class Job:
    """All that decides the bytes of a token file."""

    tokenizer: TextTokenizer
    how: Encoding
    separator: str
    text_field: str | None
    sources: tuple[dict[str, str], ...]
    tasks: tuple[Task, ...]

    def identity(self) -> dict[str, Any]:
        return {
            "tokenizer_hash": self.tokenizer.hash,
            "separator": self.separator,
            "text_field": self.text_field,
            "sources": self.sources,
        }

    def key(self) -> str:
        text = json.dumps({**self.identity(), "version": FORMAT_VERSION, "piece_bytes": PIECE_BYTES}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]


def default_cache() -> Path:
    """$MINITRON_CACHE, else ~/.cache/minitron."""
    return Path(os.environ.get("MINITRON_CACHE") or "~/.cache/minitron").expanduser()


def token_files(
    sources: tuple[Source, ...],
    tokenizer_dir: Path,
    separator: str = "auto",
    text_field: str | None = None,
    cache_dir: Path | None = None,
    workers: int = 1,
    progress: Progress = lambda done, total, tokens: None,
) -> tuple[TokenFile, ...]:
    """One token file per source, in order, all of the tokenizer in `tokenizer_dir`."""
    tokenizer = load_tokenizer(tokenizer_dir)
    cache = cache_dir or default_cache()
    files = []
    for source in sources:
        if source.tokens is not None:
            files.append(_open_fitting(source.tokens, tokenizer, separator))
            continue
        job = make_job((source,), tokenizer, separator, text_field, cache)
        files.append(run_job(job, cache / "tokens" / job.key(), workers=workers, progress=progress))
    return tuple(files)


def make_job(
    sources: tuple[Source, ...], tokenizer: TextTokenizer, separator: str, text_field: str | None, cache: Path
) -> Job:
    """Read what decides the outcome: content hashes, columns, separator. Nothing is tokenised yet."""
    separator, before, after = separator_ids(tokenizer, separator)
    described: list[dict[str, str]] = []
    tasks: list[Task] = []
    chosen: dict[str, Fields] = {}
    for source in sources:
        if source.tokens is not None:
            raise MinitronError(f"{source.spec} is a token file already", "give it to --data as it is")
        for where in (source.hub,) if source.hub is not None else source.files:
            pieces = split_hub(where) if isinstance(where, HubName) else split_file(where)
            fields = chosen.setdefault(f"{source.spec} {pieces[0].kind}", find_fields(where, text_field))
            described.append({"name": source.name, **_describe(where, cache)})
            tasks += [Task(len(tasks) + offset, piece, fields, source.name) for offset, piece in enumerate(pieces)]
    names = sorted({fields.text for fields in chosen.values() if fields.text is not None})
    how = Encoding(tokenizer.path, tuple(before), tuple(after), id_type(tokenizer.vocab_size))
    return Job(tokenizer, how, separator, ",".join(names) or None, tuple(described), tuple(tasks))


def run_job(
    job: Job,
    out: Path,
    workers: int = 1,
    progress: Progress = lambda done, total, tokens: None,
    overwrite: bool = False,
    finish: Finish = lambda directory, header: None,
) -> TokenFile:
    """Make the token file `out`, or find it made; `finish` adds to the directory before it takes its name."""
    if workers < 1:
        raise MinitronError(f"{workers} workers", "ask for 1 or more")
    if is_made(job, out):
        return TokenFile.open(out)
    try:
        check_token_output(job, out, overwrite)
    except MinitronError:
        if is_made(job, out):  # by another process, since we looked
            return TokenFile.open(out)
        raise
    parts_dir = out.with_name(f".{out.name}.minitron-parts")
    with _own(parts_dir):
        if not is_made(job, out):  # by the process that was waited for
            _make(job, out, parts_dir, workers, progress, overwrite, finish)
        _discard(parts_dir)
    return TokenFile.open(out)


def _make(
    job: Job, out: Path, parts_dir: Path, workers: int, progress: Progress, overwrite: bool, finish: Finish
) -> None:
    _keep_parts_of(job, parts_dir)
    parts = encode_all(job.tasks, job.how, job.tokenizer, parts_dir, workers, progress)
    require_text(job, parts)
    width = np.dtype(job.how.dtype).itemsize
    need_space(out, sum(width * part.num_tokens + DOCUMENT.itemsize * part.num_documents for part in parts))
    with atomic_dir(out, overwrite) as directory:
        joined = join_parts(parts, parts_dir, directory)
        header = Header(
            dtype=job.how.dtype,
            vocab_size=job.tokenizer.vocab_size,
            bos_id=job.tokenizer.bos_id,
            eos_id=job.tokenizer.eos_id,
            **asdict(joined),
            **job.identity(),
        )
        (directory / HEADER).write_text(header.to_json(), encoding="utf-8")
        finish(directory, header)


def require_text(job: Job, parts: list[Part]) -> None:
    """Refuse sources without any text."""
    if not any(part.num_tokens for part in parts):
        named = ", ".join(sorted({source["file"] for source in job.sources}))
        raise MinitronError(f"no text in {named}: every document is empty", "check --text-field")


def is_made(job: Job, out: Path) -> bool:
    """Whether `out` is the finished token file of `job`."""
    return is_token_directory(out) and not differences(job, out)


def differences(job: Job, out: Path) -> tuple[str, ...]:
    """The names of the settings in which the token file `out` differs from `job`."""
    header = read_header(out)
    return tuple(name for name, value in job.identity().items() if getattr(header, name) != value)


def check_token_output(job: Job, out: Path, overwrite: bool) -> None:
    """Refuse an existing output of another job, naming what differs."""
    if not overwrite and is_token_directory(out) and (other := differences(job, out)):
        raise MinitronError(
            f"{out} is a token file made with other settings: {', '.join(name.replace('_', ' ') for name in other)}",
            "choose another output with -o, or add --overwrite to replace it",
        )
    check_output(out, overwrite)


def _open_fitting(path: Path, tokenizer: TextTokenizer, separator: str) -> TokenFile:
    file = TokenFile.open(path)
    if file.header.tokenizer_hash != tokenizer.hash:
        raise MinitronError(
            f"token file {path} was made with another tokenizer than that of {tokenizer.path}",
            f"tokenise the source again: minitron data tokenize SOURCE --tokenizer {tokenizer.path} -o {path}",
        )
    wanted = separator if separator == "auto" else separator_ids(tokenizer, separator)[0]
    if wanted not in ("auto", file.header.separator):
        raise MinitronError(
            f"token file {path} was made with --separator {file.header.separator}, not {wanted}",
            "leave --separator out, or tokenise the source again",
        )
    return file


def _describe(where: Path | HubName, cache: Path) -> dict[str, str]:
    if isinstance(where, HubName):
        from minitron_cli.data.hub import hub_fingerprint

        return {"file": str(where), "sha256": hashlib.sha256(hub_fingerprint(where).encode()).hexdigest()}
    return {"file": where.name, "sha256": file_sha256(where, cache)}


@contextmanager
def _own(directory: Path) -> Iterator[None]:
    """Hold `directory`, made if need be, against other processes; wait for the one that holds it."""
    while True:
        make_directory(directory)
        try:
            lock = (directory / "lock").open("w")
        except FileNotFoundError:
            continue  # its owner removed the directory in this very moment
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if _is_at(lock.fileno(), directory / "lock"):  # else its owner removed it while we waited
                yield
                return


def _is_at(descriptor: int, file: Path) -> bool:
    try:
        return file.stat().st_ino == os.fstat(descriptor).st_ino
    except FileNotFoundError:
        return False


def _discard(directory: Path) -> None:
    """Remove a directory that others may be opening: first out of their way, then file by file."""
    aside = directory.with_name(f"{directory.name}-{os.getpid()}")
    directory.rename(aside)
    shutil.rmtree(aside)


def _keep_parts_of(job: Job, directory: Path) -> None:
    """Keep the parts that an interrupted run of the same job left in `directory`, remove those of any other."""
    key = directory / "job"
    if key.is_file() and key.read_text(encoding="utf-8") == job.key():
        return
    for file in directory.glob("part-*"):
        file.unlink()
    key.write_text(job.key(), encoding="utf-8")
