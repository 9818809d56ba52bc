"""`--data` values: what the user typed -> where the text is and how much of it is wanted.

    SPEC            = WHERE [":" WEIGHT]
    WHERE           = a .jsonl, .json, .parquet or .txt file | a directory of one kind of them | a glob
                    | a token directory | NAME [":" CONFIG] [":" SPLIT] of the `datasets` library

A name is local when it exists, has one of those suffixes, holds a glob character, or is written as a path (`./x`, `/x`,
`x/`); everything else is a `datasets` name. `NAME:x` reads split x where x is a usual split name, else config x.
"""

import glob
import math
import re
from dataclasses import dataclass
from pathlib import Path

from minitron_cli.data.pipes import is_pipe
from minitron_cli.data.tokens import is_token_directory
from minitron_cli.errors import MinitronError, near_matches

SUFFIXES = (".jsonl", ".json", ".parquet", ".txt")
_GLOB = re.compile(r"[*?\[]")
_SPLIT = re.compile(r"(train|test|validation|val|dev|eval|all)(\[.*\])?(\+.*)?")
_HINT = f"give a {', '.join(SUFFIXES)} file, directory, glob, token directory or datasets name (name:config:split)"


@dataclass(frozen=True, slots=True)
class HubName:
    """A data set of the `datasets` library."""

    name: str
    config: str | None
    split: str

    def __str__(self) -> str:
        return f"{self.name}:{self.config or ''}:{self.split}"


@dataclass(frozen=True, slots=True)
class Source:
    """One `--data` value. Exactly one of `files`, `tokens` and `hub` is set; `weight` None = by size."""

    spec: str
    name: str
    weight: float | None = None
    files: tuple[Path, ...] = ()
    tokens: Path | None = None
    hub: HubName | None = None


def parse_sources(specs: list[str] | tuple[str, ...]) -> tuple[Source, ...]:
    """Parse every `--data` value and look up what it names; weights must be given to all sources or to none."""
    if not specs:
        raise MinitronError("no data given", f"--data: {_HINT}")
    sources = tuple(parse_source(spec) for spec in specs)
    unweighted = [source.spec for source in sources if source.weight is None]
    if unweighted and len(unweighted) < len(sources):
        raise MinitronError(
            f"some sources have a weight and these have none: {', '.join(unweighted)}",
            "give a weight to every --data (SOURCE:0.3) or to none (then each counts by its size)",
        )
    return sources


def held_out_sources(specs: list[str] | tuple[str, ...]) -> tuple[Source, ...]:
    """The same for text that is only measured: each domain by itself, so that a weight is refused."""
    sources = parse_sources(specs)
    if weighted := [source.spec for source in sources if source.weight is not None]:
        raise MinitronError(
            f"held-out text has a weight: {', '.join(weighted)}",
            "leave the weights out: each domain is measured by itself",
        )
    return sources


def local_paths(specs: list[str] | tuple[str, ...]) -> tuple[Path, ...]:
    """The directories and files of this machine that `--data` values name."""
    found: list[Path] = []
    for source in map(parse_source, specs):
        where = Path(_split_weight(source.spec)[0]).expanduser()
        found += [where] if where.exists() else source.files
    return tuple(found)


def parse_source(spec: str) -> Source:
    """Parse one `--data` value."""
    where, weight = _split_weight(spec)
    if not where:
        raise MinitronError(f"--data {spec!r} names no source", _HINT)
    if is_pipe(where):
        raise MinitronError(
            f"--data {spec} is a pipe, which can be read once only",
            "make a token directory of it: ... | minitron data tokenize - --tokenizer MODEL -o tokens/",
        )
    path = Path(where).expanduser()
    if path.exists() or _looks_local(where):
        return _local(spec, path, weight)
    hub = _hub_name(spec, where)
    return Source(spec, name=hub.name.rsplit("/", 1)[-1], weight=weight, hub=hub)


def _split_weight(spec: str) -> tuple[str, float | None]:
    if Path(spec).expanduser().exists():  # a file name may end in ":1"
        return spec, None
    where, colon, last = spec.rpartition(":")
    try:
        weight = float(last) if colon else None
    except ValueError:
        return spec, None
    if weight is not None and not (math.isfinite(weight) and weight > 0):
        raise MinitronError(f"--data {spec}: the weight {last} is not a number above 0", "write it as SOURCE:0.7")
    return (where, weight) if colon else (spec, None)


def _looks_local(where: str) -> bool:
    suffix = Path(where).suffix.lower()
    return (
        suffix in SUFFIXES
        or where.startswith(("/", "./", "../", "~"))
        or where.endswith("/")
        or bool(_GLOB.search(where.split(":")[0]))
    )


def _local(spec: str, path: Path, weight: float | None) -> Source:
    if is_token_directory(path):
        return Source(spec, name=path.name, weight=weight, tokens=path)
    if (path / "config.json").is_file() and (path / "tokenizer_config.json").is_file():
        raise MinitronError(f"--data {spec} is a model directory, not data", _HINT)
    if path.is_dir():
        return Source(spec, name=path.resolve().name, weight=weight, files=_directory_files(path))
    if path.is_file():
        return Source(spec, name=path.stem, weight=weight, files=(_known(path),))
    if _GLOB.search(str(path)):
        found = sorted(Path(name) for name in glob.glob(str(path), recursive=True))
        files = tuple(_known(file) for file in found if file.is_file())
        if not files:
            raise MinitronError(f"no file matches {path}", "check the pattern, and quote it in the shell")
        return Source(spec, name=_GLOB.split(path.name)[0].strip("-_.") or path.parent.name, weight=weight, files=files)
    raise MinitronError(f"no such file or directory: {path}", _near_files(path))


def _known(file: Path) -> Path:
    if file.suffix.lower() not in SUFFIXES:
        raise MinitronError(
            f"{file} is not data that minitron reads: {file.suffix or 'no suffix'}",
            f"known: {', '.join(SUFFIXES)}; rename it, or convert it to one of them",
        )
    return file


def _directory_files(path: Path) -> tuple[Path, ...]:
    """Every data file under `path`, sorted; a directory that mixes kinds is refused, for one of them is a README."""
    visible = (
        file for file in path.rglob("*") if not any(part.startswith(".") for part in file.relative_to(path).parts)
    )
    files = tuple(sorted(file for file in visible if file.is_file() and file.suffix.lower() in SUFFIXES))
    kinds = sorted({file.suffix.lower() for file in files})
    if not files:
        raise MinitronError(f"directory {path} holds no {', '.join(SUFFIXES)} file and is not a token directory", _HINT)
    if len(kinds) > 1:
        raise MinitronError(
            f"directory {path} holds several kinds of file: {', '.join(kinds)}",
            f"choose by a glob, for example --data '{path}/**/*{kinds[0]}'",
        )
    return files


def _hub_name(spec: str, where: str) -> HubName:
    parts = re.split(r":(?![^\[]*\])", where)  # a slice keeps its colon: train[:1%]
    if len(parts) > 3 or not parts[0] or any(not re.fullmatch(r"[\w.\-/\[\]%:+ ]*", part) for part in parts):
        raise MinitronError(f"--data {spec!r} cannot be read", _HINT)
    if len(parts) == 3:
        return HubName(parts[0], parts[1] or None, parts[2] or "train")
    if len(parts) == 2 and _SPLIT.fullmatch(parts[1]):
        return HubName(parts[0], None, parts[1])
    return HubName(parts[0], parts[1] if len(parts) == 2 else None, "train")


def _near_files(path: Path) -> str:
    if not path.parent.is_dir():
        return f"there is no directory {path.parent} either"
    names = sorted(file.name for file in path.parent.iterdir() if file.suffix.lower() in SUFFIXES)
    return near_matches(path.name, names) if names else _HINT
