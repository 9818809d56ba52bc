"""Checking artefacts against the digests that they carry. Problems are collected, so that one call names them all."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from minitron_cli.checkpoint.atomic import MANIFEST
from minitron_cli.checkpoint.moments_file import INDEX, open_moments
from minitron_cli.checkpoint.provenance import changed_files, content_files, load_manifest
from minitron_cli.checkpoint.scores_file import has_digest, read_scores
from minitron_cli.checkpoint.seal import is_altered, is_sealed
from minitron_cli.errors import MinitronError

# Files that a loader would read: one that the manifest does not list changes the artefact.
_READ = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".json", ".jinja", ".model", ".py", ".npy")
_TYPES: dict[str, type] = {"verb": str, "options": dict, "inputs": dict, "files": dict, "lineage": list}


@dataclass(slots=True)
class Findings:
    """What was checked and what was found; `unlisted` files are harmless ones that the manifest does not name."""

    path: str
    made_by: str = ""
    checks: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    unlisted: list[str] = field(default_factory=list)
    lineage: list[dict[str, Any]] = field(default_factory=list)


def verify_directory(directory: Path) -> tuple[Findings, Mapping[str, Any]]:
    """Check a directory against its manifest: the manifest against itself, then every file. Returns both."""
    manifest = load_manifest(directory)
    if manifest is None:
        raise MinitronError(
            f"{directory} has no {MANIFEST}: it was not made by minitron, or is unfinished",
            "for a model of another maker use `minitron inspect`",
        )
    wrong = [key for key, kind in _TYPES.items() if not isinstance(manifest.get(key), kind)]
    if not wrong and not all(
        isinstance(step, dict) and {"model", "verb"} <= step.keys() for step in manifest["lineage"]
    ):
        wrong = ["lineage"]
    if wrong:
        raise MinitronError(
            f"{directory / MANIFEST} is damaged: {', '.join(wrong)} missing or of the wrong kind", "make it again"
        )
    found = Findings(str(directory), f"minitron {manifest['verb']}", lineage=manifest["lineage"])
    _check_seal(manifest, MANIFEST, found)
    _check_files(directory, manifest["files"], found)
    return found, manifest


def verify_scores(file: Path) -> Findings:
    """Check a scores file against the digest in its metadata."""
    found = Findings(str(file), "minitron importance")
    try:
        scores, raw = read_scores(file)
    except MinitronError as error:
        found.problems.append(error.message)
        return found
    if has_digest(file):
        found.checks.append(f"digest of {len(scores.values)} axes and {len(raw)} running sums")
    else:
        found.notes.append("the file carries no digest: an older version made it, so only its form was checked")
    found.checks.append(f"measured on {scores.provenance.get('model', {}).get('name', 'an unnamed model')}")
    return found


def verify_moments(directory: Path) -> Findings:
    """Check a directory of input Gram matrices: its index, then every file."""
    found = Findings(str(directory), "minitron importance --second-moments")
    try:
        moments = open_moments(directory)
    except MinitronError as error:
        found.problems.append(error.message)
        return found
    for name in moments.files:
        try:
            moments.check(name)
        except MinitronError as error:
            found.problems.append(error.message)
    extra = sorted(f.name for f in directory.iterdir() if f.name not in (*moments.files, INDEX))
    found.problems += [f"{name} is not listed in {INDEX}" for name in extra]
    found.checks.append(f"sha256 of {len(moments.files)} files, {len(moments.inputs)} input Gram matrices")
    return found


def verify_results(file: Path) -> Findings:
    """Check a JSON file that carries its own digest: results of eval and bench, reference losses."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise MinitronError(f"{file} is not JSON: {error}", "give what a minitron command made") from error
    if not isinstance(content, dict) or not ("rows" in content or is_sealed(content)):
        raise MinitronError(f"{file} is not a results file of minitron", "give what `minitron eval -o` wrote")
    found = Findings(str(file), f"minitron {content.get('kind', 'eval' if 'rows' in content else 'reference-loss')}")
    _check_seal(content, file.name, found)
    return found


def _check_seal(content: Mapping[str, Any], name: str, found: Findings) -> None:
    if is_altered(content):
        found.problems.append(f"{name} was altered after it was written (its digest does not match)")
    elif is_sealed(content):
        found.checks.append(f"{name} against its own digest")
    else:
        found.notes.append(
            f"{name} carries no digest of itself: an older version made it, so changes in it cannot be detected"
        )


def _check_files(directory: Path, listed: Mapping[str, Any], found: Findings) -> None:
    outside = sorted(n for n in listed if PurePosixPath(n).is_absolute() or ".." in PurePosixPath(n).parts)
    found.problems += [f"{MANIFEST} lists {name!r}, which is outside the directory" for name in outside]
    inside = {name: digest for name, digest in listed.items() if name not in outside}
    found.checks.append(f"sha256 of {sum((directory / name).is_file() for name in inside)} files")
    found.problems += changed_files(directory, inside)
    extra = [f.relative_to(directory).as_posix() for f in content_files(directory)]
    extra = [name for name in extra if name not in listed]
    found.problems += [f"{name} is not listed in {MANIFEST}" for name in extra if name.endswith(_READ)]
    found.unlisted += [name for name in extra if not name.endswith(_READ)]
