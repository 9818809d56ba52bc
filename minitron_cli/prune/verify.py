"""Re-checking an artefact against its own manifest, and a pruned model against the source it claims to come from."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minitron_cli.checkpoint.atomic import MANIFEST
from minitron_cli.checkpoint.hfconfig import pruned_config, validate_config
from minitron_cli.checkpoint.provenance import combined_digest, digests, file_digest, read_manifest, read_plan
from minitron_cli.checkpoint.reader import Checkpoint, load_config, open_checkpoint, weight_files
from minitron_cli.errors import MinitronError
from minitron_cli.hf.memory import free_host_memory
from minitron_cli.prune.compensate import from_record
from minitron_cli.prune.gather_plan import cuts
from minitron_cli.prune.trim import write_model


def verify(
    directory: Path, source: str | None = None, load: bool = True, moments: Path | None = None
) -> dict[str, Any]:
    """Check hashes, tables, config and kept indices; load with transformers; with `source`, derive the weights again.

    Returns what was checked, as {"checks": [..], "problems": [..], ..}; problems are collected, not raised.
    """
    if not directory.is_dir():
        raise MinitronError(f"{directory} is no directory", "give what `minitron prune` or `minitron distill` made")
    manifest = read_manifest(directory)
    if manifest is None:
        raise MinitronError(
            f"{directory} has no {MANIFEST}: it was not made by minitron, or is unfinished",
            "for a model of another maker use `minitron inspect`",
        )
    result: dict[str, Any] = {"directory": str(directory), "verb": manifest.get("verb"), "checks": [], "problems": []}
    _check_files(directory, manifest, result)
    if (directory / "config.json").is_file():
        _check_model(directory, result, load)
    if source is not None:
        _check_source(directory, manifest, source, moments, result)
    result["lineage"] = manifest.get("lineage", [])
    return result


def _check_files(directory: Path, manifest: Mapping[str, Any], result: dict[str, Any]) -> None:
    listed: Mapping[str, str] = manifest.get("files", {})
    missing = sorted(name for name in listed if not (directory / name).is_file())
    found = digests(directory / name for name in listed if name not in missing)
    changed = sorted(name for name, digest in found.items() if digest != listed[name])
    result["checks"].append(f"sha256 of {len(found)} files")
    result["problems"] += [f"{name} is missing" for name in missing]
    result["problems"] += [f"{name} is not the file that was written (sha256 differs)" for name in changed]
    extra = sorted(f.name for f in directory.iterdir() if f.is_file() and f.name not in (*listed, MANIFEST))
    result["unlisted"] = extra


def _check_model(directory: Path, result: dict[str, Any], load: bool) -> None:
    try:
        checkpoint = open_checkpoint(directory)
        validate_config(checkpoint.config)
        plan = read_plan(directory)
    except MinitronError as error:
        result["problems"].append(error.message)
        return
    result["checks"].append(f"{len(checkpoint.tensors)} tensors against the {checkpoint.family.name} table and config")
    if plan is not None:
        result["checks"].append("kept indices against the shape")
        if plan.target != checkpoint.shape:
            result["problems"].append("the kept indices lead to another shape than the config's")
    if load:
        _check_load(checkpoint, result)


def _check_load(checkpoint: Checkpoint, result: dict[str, Any]) -> None:
    free = free_host_memory()
    if checkpoint.num_bytes * 5 // 4 > free:
        result["checks"].append("not loaded: it does not fit in memory")
        return
    from transformers import AutoModelForCausalLM

    loaded: Any = AutoModelForCausalLM.from_pretrained(checkpoint.path, dtype="auto", output_loading_info=True)
    wrong = {kind: sorted(map(str, names)) for kind, names in loaded[1].items() if names}
    result["checks"].append("loads with transformers")
    result["problems"] += [f"transformers reports {kind}: {', '.join(names[:3])}" for kind, names in wrong.items()]


def _check_source(
    directory: Path, manifest: Mapping[str, Any], model: str, moments: Path | None, result: dict[str, Any]
) -> None:
    """Derive weights and config from the source and the kept indices again, and compare."""
    plan = read_plan(directory)
    if manifest.get("verb") != "prune" or plan is None:
        raise MinitronError(
            f"{directory} was made by {manifest.get('verb')!r}: its weights do not follow from a source alone",
            "leave --source out; it re-derives pruned models only",
        )
    source = open_checkpoint(model)
    if source.shape != plan.source:
        result["problems"].append(f"{model} has another shape than the source the kept indices speak of")
        return
    cut = cuts(source, plan, from_record(manifest, moments))
    derived = write_model(None, weight_files(source.path), cut, manifest["max_shard_bytes"])
    identity = combined_digest({**derived.source, "config.json": file_digest(source.path / "config.json")})
    if identity != manifest["inputs"]["model"]["digest"]:
        result["problems"].append(f"{model} is not the model that was pruned (its digest differs)")
    wrong = [name for name, digest in derived.target.items() if manifest["files"].get(name) != digest]
    result["problems"] += [f"{name} does not follow from the source and the kept indices" for name in wrong]
    if pruned_config(source.config, source.family, plan) != load_config(directory):
        result["problems"].append("config.json does not follow from the source's and the kept indices")
    result["checks"].append(f"{len(derived.target)} weight files derived again from {model}")
