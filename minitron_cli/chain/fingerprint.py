"""What a step depends on, as one digest: its options, the content of its inputs, and the code that matters to it."""

import glob
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import minitron_cli
from minitron_cli.checkpoint.atomic import MANIFEST
from minitron_cli.checkpoint.provenance import content_files, file_digest
from minitron_cli.spec.recipe import Recipe, Step, declared_in, locate

# The packages whose code decides what a verb writes; a change elsewhere (help texts, reports) reruns nothing.
_COMMON = ("spec", "families", "checkpoint", "data", "hf")
CODE = {
    "toy": ("toy",),
    "train": (*_COMMON, "training"),
    "importance": (*_COMMON, "importance", "evaluate"),  # which grades with --depth-task
    "prune": (*_COMMON, "prune", "importance"),  # which measures scores where a step has data instead
    "shear": (*_COMMON, "training", "prune"),
    "distill": (*_COMMON, "training"),
    "reference-loss": (*_COMMON, "training"),
    "eval": (*_COMMON, "evaluate"),
    "bench": (*_COMMON, "evaluate"),
}

Signature = dict[str, list[int]]


def code_digest(verb: str) -> str:
    """Digest of the sources of the packages that matter to a verb."""
    root = Path(minitron_cli.__file__).parent
    files = sorted(f for package in CODE[verb] for f in (root / package).rglob("*.py"))
    return _digest({str(f.relative_to(root)): file_digest(f) for f in files})


def step_fingerprint(step: Step, inputs: Mapping[str, str]) -> str:
    """Digest of everything a step's output follows from; `inputs` maps each reference to its content's digest."""
    options = {key: list(v) if isinstance(v, tuple) else v for key, v in step.options.items()}
    return _digest({
        "verb": step.verb,
        "options": options,
        "inputs": {key: [inputs[ref] for ref in refs] for key, refs in step.inputs.items()},
        "code": code_digest(step.verb),
    })  # fmt: skip


def content_digest(path: Path) -> str:
    """Digest of a file, or of all files of a directory by relative name."""
    return combine(path, file_digests(path))


def file_digests(path: Path) -> dict[str, str]:
    """Digest of every file that makes up an artefact, by relative name; of a file under "."."""
    files = [path] if path.is_file() else content(path)
    return {str(f.relative_to(path)): file_digest(f) for f in files}


def combine(path: Path, files: Mapping[str, str]) -> str:
    """The digest of an artefact from those of its files."""
    return files["."] if path.is_file() else _digest(dict(files))


def signature(path: Path) -> Signature:
    """Size and modification time of every file: equal signatures need no second hashing."""
    files = [path] if path.is_file() else content(path)
    return {str(f.relative_to(path)): [f.stat().st_size, f.stat().st_mtime_ns] for f in files}


def content(path: Path) -> list[Path]:
    """The files that make up an artefact, sorted."""
    return sorted([*content_files(path), *path.glob(MANIFEST)])


def given_digest(text: str) -> str:
    """Digest of a declared input: the content of a path or glob, with its weight, or the name of something remote."""
    where, _, weight = text.rpartition(":")
    if (local := _local_digest(text)) is not None:
        return local
    if (local := _local_digest(where)) is not None:
        return _digest({"content": local, "weight": weight})
    return _digest({"remote": text})


def _local_digest(text: str) -> str | None:
    """Digest of the content at a path, or of all that a glob matches; None where that is nothing."""
    if text and Path(text).exists():
        return content_digest(Path(text))
    matches = sorted(glob.glob(text, recursive=True))
    return _digest({match: content_digest(Path(match)) for match in matches}) if matches else None


def input_digests(recipe: Recipe, step: Step, made: Mapping[str, str], directory: Path) -> dict[str, str]:
    """Digest of every reference of a step. A path below a step's output counts by the content at that path."""
    found = {}
    for reference in step.needs():
        place = locate(recipe, reference, directory)
        if declared_in(reference):
            found[reference] = given_digest(place)
        elif "/" in reference and Path(place).exists():
            found[reference] = content_digest(Path(place))
        else:
            found[reference] = made[reference.split("/")[0]]
    return found


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
