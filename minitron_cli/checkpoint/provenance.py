"""How an artefact was made: minitron.json, and the kept indices beside it.

No time stamps: the same input gives the same bytes.
"""

import hashlib
import json
import platform
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from minitron_cli import __version__
from minitron_cli.checkpoint.atomic import MANIFEST
from minitron_cli.checkpoint.reader import weight_files
from minitron_cli.checkpoint.seal import require_unaltered, sealed
from minitron_cli.errors import MinitronError
from minitron_cli.spec.axes import GROUPS
from minitron_cli.spec.plan import Merge, Plan, plan_problems
from minitron_cli.spec.shape import Shape

KEPT_INDICES = "kept_indices.safetensors"
_BASIS = "hidden.directions"
_MERGE = ("expert.merged_into", "expert.merge_share")
_PACKAGES = ("torch", "transformers", "safetensors", "numpy")


def file_digest(file: Path) -> str:
    """sha256 of a file, hex."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digests(files: Iterable[Path], below: Path | None = None) -> dict[str, str]:
    """File name, or path relative to `below`, -> sha256, several at a time."""
    files = sorted(files)
    return _digests({file.relative_to(below).as_posix() if below else file.name: file for file in files})


def _digests(files: Mapping[str, Path]) -> dict[str, str]:
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(files, pool.map(file_digest, files.values())))


def changed_files(directory: Path, listed: Mapping[str, str]) -> list[str]:
    """What is wrong with the files of a directory by their recorded sha256, one line each; empty where nothing is."""
    there = _digests({name: directory / name for name in sorted(listed) if (directory / name).is_file()})
    missing, changed = sorted(listed.keys() - there.keys()), [name for name in there if there[name] != listed[name]]
    return [f"{name} is missing" for name in missing] + [f"{name} has changed (its sha256 differs)" for name in changed]


def model_files(path: Path) -> list[Path]:
    """What makes a model the model it is: its weights and its config."""
    return [*weight_files(path), path / "config.json"]


def combined_digest(parts: Mapping[str, str]) -> str:
    """One digest of several named ones."""
    return hashlib.sha256(json.dumps(dict(sorted(parts.items()))).encode()).hexdigest()


def model_digest(path: Path) -> str:
    """Identity of a model directory: its weights and config, not its name or place."""
    return combined_digest(digests(model_files(path)))


def examine_hint(directory: Path) -> str:
    """The command that says what is wrong with a model: by its manifest, or where it has none by its headers."""
    verb = "verify" if (directory / MANIFEST).is_file() else "inspect"
    return f"`minitron {verb} {directory}` says what is wrong"


def versions() -> dict[str, str]:
    """The versions that can change a result."""
    found = {"minitron": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def read_manifest(path: Path) -> dict[str, Any] | None:
    """minitron.json of a directory, or None where there is none; one that was altered is refused.

    Manifests of older versions carry no digest of themselves and are taken as they are.
    """
    manifest = load_manifest(path)
    if manifest is not None:
        require_unaltered(manifest, path / MANIFEST)
    return manifest


def load_manifest(path: Path) -> dict[str, Any] | None:
    """Like `read_manifest`, without comparing the manifest with its digest."""
    file = path / MANIFEST
    if not file.is_file():
        return None
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise MinitronError(f"{file} is not valid JSON: {error}", "the artefact is damaged; make it again") from error
    if not isinstance(manifest, dict):
        raise MinitronError(f"{file} is not a JSON object", "the artefact is damaged; make it again")
    return manifest


def write_manifest(
    directory: Path, *, verb: str, options: Mapping[str, Any], inputs: Mapping[str, Any], parent: Path | None = None,
    known: Mapping[str, str] | None = None, **facts: Any,
) -> dict[str, Any]:  # fmt: skip
    """Write minitron.json: sha256 of every file in and below `directory`, which is complete but for it, and of itself.

    `inputs` name what was read, by digest; `parent` is the model this one descends from, whose own lineage is carried
    along. Digests of files that were taken while they were written are `known`. Call it last: a directory that has the
    manifest is a finished one.
    """
    files = [f for f in content_files(directory) if f.relative_to(directory).as_posix() not in (known or {})]
    manifest = sealed({
        "format": 1,
        "verb": verb,
        "options": dict(options),
        "inputs": dict(inputs),
        **facts,
        "files": dict(sorted({**digests(files, directory), **(known or {})}.items())),
        "versions": versions(),
        "lineage": lineage(parent) if parent else [],
    })  # fmt: skip
    temporary = directory / f".{MANIFEST}"
    temporary.write_text(json.dumps(manifest, indent=2, sort_keys=False) + "\n")
    temporary.replace(directory / MANIFEST)
    return manifest


def content_files(directory: Path) -> list[Path]:
    """The files of an artefact but its manifest; a training's checkpoints and curves (run/) are not part of it."""
    files = (f for f in directory.rglob("*") if f.is_file() and f != directory / MANIFEST)
    return sorted(f for f in files if f.relative_to(directory).parts[0] != "run")


def lineage(parent: Path) -> list[dict[str, Any]]:
    """The steps from the root model down to `parent`, oldest first; a model we did not make is a root."""
    manifest = read_manifest(parent)
    if manifest is None:
        return [{"model": parent.resolve().name, "verb": None}]
    step = {"model": parent.resolve().name, "verb": manifest["verb"], "options": manifest["options"]}
    return [*manifest["lineage"], step]


def write_plan(directory: Path, plan: Plan) -> None:
    """Write the kept indices beside the weights they made."""
    from safetensors.numpy import save

    # One metadata key: safetensors does not keep the order of several, and the same plan must give the same bytes.
    shapes = json.dumps(
        {"source": dict(plan.source.sizes), "target": dict(plan.target.sizes), **_structure(plan.source)}
        | ({"dense": True} if plan.dense else {})
    )
    kept = {axis: np.ascontiguousarray(index) for axis, index in plan.kept.items()}
    if plan.basis is not None:
        kept[_BASIS] = np.ascontiguousarray(plan.basis)
    if plan.merge is not None:
        kept |= dict(zip(_MERGE, (plan.merge.into, plan.merge.share)))
    # Not save_file, which makes files that only their owner can read.
    (directory / KEPT_INDICES).write_bytes(save(kept, {"minitron": shapes}))


def _structure(shape: Shape) -> dict[str, Any]:
    """The fields of a shape other than its sizes, where they differ from the defaults."""
    found = {
        "groups": shape.groups if shape.groups != GROUPS else (),
        "kinds": shape.kinds,
        "follows": shape.follows,
        "kinds_with": {axis: sorted(kinds) for axis, kinds in sorted(shape.kinds_with.items())} if shape.kinds else {},
    }
    return {name: value for name, value in found.items() if value}


def _shape(sizes: Mapping[str, int], shapes: Mapping[str, Any]) -> Shape:
    """The shape of these sizes, with the structure of the source."""
    groups, follows = (
        tuple((axis, other) for axis, other in shapes.get(name, usual))
        for name, usual in (("groups", GROUPS), ("follows", ()))
    )
    kinds = tuple(map(tuple, shapes.get("kinds", ())))
    kinds_with = {axis: frozenset(having) for axis, having in shapes.get("kinds_with", {}).items()}
    return Shape(sizes, groups, kinds, kinds_with, follows)


def read_plan(directory: Path) -> Plan | None:
    """The plan a pruned checkpoint was made by, or None where it carries none."""
    file = directory / KEPT_INDICES
    if not file.is_file():
        return None
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as stream:
            shapes = json.loads((stream.metadata() or {})["minitron"])
            kept = {axis: stream.get_tensor(axis) for axis in stream.keys()}  # noqa: SIM118
        source, target = (_shape(shapes[name], shapes) for name in ("source", "target"))
        if "layer" in kept:
            target = target.of_layers(kept["layer"].tolist(), source)
        basis = kept.pop(_BASIS, None)
        merge = Merge(*(kept.pop(name) for name in _MERGE)) if _MERGE[0] in kept else None
        dense = bool(shapes.get("dense"))
    except (SafetensorError, KeyError, ValueError, TypeError, AttributeError, AssertionError, IndexError) as error:
        raise MinitronError(f"{file} does not hold kept indices: {error}", "prune the model again") from error
    if problems := plan_problems(source, target, kept, basis, merge, dense):
        raise MinitronError(f"{file} does not hold a plan: {'; '.join(problems)}", "prune the model again")
    return Plan(source, target, kept, basis, merge, dense)
