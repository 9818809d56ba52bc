"""The models of a run: sizes from their headers, descent from the command lines, training from their metrics."""

from collections.abc import Mapping
from dataclasses import replace
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

_FACTS = ("parameters", "non_embedding_parameters", "kv_bytes_per_token", "state_bytes", "shape")


def bare_model(step: Step, outputs: Mapping[str, str], known: Mapping[str, Any]) -> Model:
    """The model that a step makes as its command line and family.json (`known`) tell it, no file read. `outputs` maps
    output paths, as typed, to step names.
    """
    return Model(
        name=step.name,
        verb=step.verb,
        path=step.output,
        state=step.state,
        parent=place(step.command[1], outputs),
        teachers=tuple(place(value, outputs) for word, value in pairwise(step.command) if word == "--teacher"),
        facts={key: known[key] for key in _FACTS if key in known},
        manifest={"training": known["training"]} if known.get("training") else {},
        plan=None,
        curve=None,
        evaluation=known.get("evaluation") or {},
    )


def read_into(model: Model) -> dict[str, Any]:
    """What the files at a model's path say in place of what is known already."""
    run, manifest = model.path / "run", read_manifest(model.path)
    found: dict[str, Any] = {"curve": read_curve(run)}
    if manifest is None:
        return found if model.manifest else {**found, "manifest": {"options": training_options(run)}}
    facts = describe(open_checkpoint(model.path), context=0)
    return {**found, "manifest": manifest, "facts": facts, "plan": read_plan(model.path), "evaluation": {}}


def place(word: str, outputs: Mapping[str, str]) -> str:
    """The step whose output a word on a command line names (`large`, `world/teacher-init`), else the word itself."""
    for output, name in outputs.items():
        if word == output or word.startswith(output + "/"):
            return name + word[len(output) :]
    return word


def recorded_digest(manifest: Mapping[str, Any]) -> str | None:
    """The identity of a model (`model_digest`) from the hashes in its manifest, without reading a weight again."""
    files = manifest.get("files") or {}
    parts = {n: d for n, d in files.items() if n == "config.json" or fnmatch(n, "model*.safetensors")}
    return combined_digest(parts) if len(parts) > 1 else None


def single_model(directory: Path) -> tuple[Model, tuple[Model, ...]]:
    """The model of one output directory, finished or not, and its ancestors as far as its manifest names them."""
    manifest = read_manifest(directory) or {}
    options = training_options(directory / "run")
    verb = options.get("verb") or manifest.get("verb")  # the manifest of a sheared model says how it was cut
    if verb is None:
        raise MinitronError(f"{directory} does not say what made it", "give the output of `minitron distill` or `run`")
    ancestors = _ancestors(manifest, options)
    command = (verb, ancestors[-1].name if ancestors else "")
    state = "done" if manifest else "begun"
    step = Step(directory.resolve().name, verb, command, directory, state, None, {}, {})
    model = bare_model(step, {}, {})
    teachers = tuple(Path(text).name for text in options.get("teacher", ()))
    found = {"parent": command[1] or None, "teachers": teachers, **read_into(model)}
    return replace(model, **found), ancestors


def _ancestors(manifest: Mapping[str, Any], options: Mapping[str, Any]) -> tuple[Model, ...]:
    """Ancestors by name and verb alone: their files may be anywhere."""
    lineage = manifest.get("lineage")
    if lineage is None:
        student = options.get("student")
        lineage = [{"model": Path(student).name, "verb": None}] if student and not options.get("from_scratch") else []
    found: list[Model] = []
    for entry in lineage:
        name, verb, parent = entry["model"], entry["verb"] or "root", found[-1].name if found else ""
        model = bare_model(Step(name, verb, (verb, parent), Path(name), "elsewhere", None, {}, {}), {}, {})
        found.append(replace(model, parent=parent or None, manifest={"options": entry.get("options", {})}))
    return tuple(found)
