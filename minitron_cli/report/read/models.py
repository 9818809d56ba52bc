"""The models of a run: sizes from their headers, descent from the command lines, training from their metrics."""

from collections.abc import Mapping
from fnmatch import fnmatch
from itertools import pairwise
from pathlib import Path
from typing import Any

from minitron_cli.checkpoint.describe import describe
from minitron_cli.checkpoint.provenance import combined_digest, read_manifest, read_plan
from minitron_cli.checkpoint.reader import open_checkpoint
from minitron_cli.errors import MinitronError
from minitron_cli.report.read.curves import read_curve, training_options
from minitron_cli.report.read.values import Model, Step

_FACTS = ("parameters", "non_embedding_parameters", "kv_bytes_per_token", "shape")


def make_model(step: Step, outputs: Mapping[str, str], known: Mapping[str, Any], light: bool = False) -> Model:
    """The model that a step makes. `outputs` maps output paths, as typed, to step names; `known` is what family.json
    says, for artefacts that are no longer here. `light` reads nothing but the command line.
    """
    manifest = {} if light else read_manifest(step.output) or {}
    facts: Mapping[str, Any] = {key: known[key] for key in _FACTS if key in known}
    if manifest:
        facts = describe(open_checkpoint(step.output), context=0)
    return Model(
        name=step.name,
        verb=step.verb,
        path=step.output,
        state=step.state,
        parent=place(step.command[1], outputs),
        teachers=tuple(place(word, outputs) for word in values_of(step.command, "--teacher")),
        facts=facts,
        manifest=manifest
        or _manifest_of(known)
        or ({} if light else {"options": training_options(step.output / "run")}),
        plan=read_plan(step.output) if manifest and step.verb == "prune" else None,
        curve=None if light or step.verb == "prune" else read_curve(step.output / "run"),
        evaluation={} if manifest else known.get("evaluation") or {},
    )


def values_of(command: tuple[str, ...], flag: str) -> list[str]:
    """Every value that a flag is given on a command line."""
    return [value for word, value in pairwise(command) if word == flag]


def place(word: str, outputs: Mapping[str, str]) -> str:
    """The step whose output a word on a command line names (`large`, `world/teacher-init`), else the word itself."""
    for output, name in outputs.items():
        if word == output:
            return name
        if word.startswith(output + "/"):
            return name + word[len(output) :]
    return word


def _manifest_of(known: Mapping[str, Any]) -> dict[str, Any]:
    return {"training": known["training"]} if known.get("training") else {}


def recorded_digest(manifest: Mapping[str, Any]) -> str | None:
    """The identity of a model (`model_digest`) from the hashes in its manifest, without reading a weight again."""
    files = manifest.get("files") or {}
    parts = {n: d for n, d in files.items() if n == "config.json" or fnmatch(n, "model*.safetensors")}
    return combined_digest(parts) if len(parts) > 1 else None


def single_model(directory: Path) -> tuple[Model, tuple[Model, ...]]:
    """The model of one output directory, finished or not, and its ancestors as far as its manifest names them."""
    manifest = read_manifest(directory) or {}
    options = training_options(directory / "run")
    verb = manifest.get("verb") or options.get("verb")
    if verb is None:
        raise MinitronError(f"{directory} does not say what made it", "give the output of `minitron distill` or `run`")
    facts = describe(open_checkpoint(directory), context=0) if manifest else {}
    ancestors = _ancestors(manifest, options)
    model = Model(
        name=directory.resolve().name,
        verb=verb,
        path=directory,
        state="done" if manifest else "begun",
        parent=ancestors[-1].name if ancestors else None,
        teachers=tuple(Path(text).name for text in options.get("teacher", ())),
        facts=facts,
        manifest=manifest or {"options": options},
        plan=read_plan(directory) if manifest and verb == "prune" else None,
        curve=read_curve(directory / "run"),
        evaluation={},
    )
    return model, ancestors


def _ancestors(manifest: Mapping[str, Any], options: Mapping[str, Any]) -> tuple[Model, ...]:
    """Ancestors by name and verb alone: their files may be anywhere."""
    lineage = manifest.get("lineage")
    if lineage is None:
        student = options.get("student")
        lineage = [{"model": Path(student).name, "verb": None}] if student and not options.get("from_scratch") else []
    found: list[Model] = []
    for entry in lineage:
        parent = found[-1].name if found else None
        about = {"options": entry.get("options", {})}
        found.append(
            Model(
                entry["model"],
                entry["verb"] or "root",
                Path(entry["model"]),
                "elsewhere",
                parent,
                (),
                {},
                about,
                None,
                None,
                {},
            )
        )
    return tuple(found)
