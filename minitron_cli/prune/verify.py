"""Checking a model against its manifest and config, and a pruned one against the source that it was made from."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minitron_cli.checkpoint.hfconfig import validate_config, written_config
from minitron_cli.checkpoint.provenance import KEPT_INDICES, read_plan
from minitron_cli.checkpoint.reader import Checkpoint, load_whole_config, open_checkpoint
from minitron_cli.checkpoint.tensor_digests import combined
from minitron_cli.checkpoint.verify import Findings, verify_directory
from minitron_cli.data.tokenizer import has_tokenizer, tokenizer_json
from minitron_cli.data.vocabulary.surgery import cut_tokenizer
from minitron_cli.errors import MinitronError, first_line
from minitron_cli.hf.memory import free_host_memory
from minitron_cli.hf.quiet import quiet
from minitron_cli.prune.change import changes
from minitron_cli.prune.compensate import from_record
from minitron_cli.prune.expert_refit import taken
from minitron_cli.prune.gather_plan import cuts
from minitron_cli.prune.target import layer_list
from minitron_cli.prune.trim import write_model
from minitron_cli.spec.plan import Plan
from minitron_cli.spec.recipe import MAKES_MODELS

_TOKENS = 8  # of the forward pass
# What model classes and kernels raise where a model does not fit them.
_FAILURES = (OSError, RuntimeError, ValueError, TypeError, LookupError, AttributeError, ImportError)


def verify(
    directory: Path, source: str | None = None, load: bool = True, moments: Path | None = None, forward: bool = False
) -> Findings:
    """Check hashes, tables, config and kept indices of `directory`, a model or other output with a manifest.

    `load` loads the model with transformers, `forward` runs it once; with `source` the weights are derived again.
    """
    if not directory.is_dir():
        raise MinitronError(f"{directory} is not a directory", "give what a minitron command made")
    found, manifest = verify_directory(directory)
    if (directory / "config.json").is_file():
        _check_model(directory, manifest, found, load or forward, forward)
    elif manifest["verb"] in MAKES_MODELS and not found.problems:
        found.problems.append("config.json is missing")
    if source is not None:
        _check_source(directory, manifest, source, moments, found)
    return found


def _check_model(directory: Path, manifest: Mapping[str, Any], found: Findings, load: bool, forward: bool) -> None:
    try:
        checkpoint = open_checkpoint(directory)
        validate_config(checkpoint.whole)
        plan = read_plan(directory)
    except MinitronError as error:
        found.problems.append(error.message)
        return
    found.checks.append(f"{len(checkpoint.tensors)} tensors against the {checkpoint.family.name} table and config")
    if manifest["verb"] == "prune":
        found.problems += _plan_problems(checkpoint, manifest, plan)
        found.checks.append("shape, options and kept layers of the manifest against config and kept indices")
    if load:
        _check_load(checkpoint, found, forward)


def _plan_problems(checkpoint: Checkpoint, manifest: Mapping[str, Any], plan: Plan | None) -> list[str]:
    """Where manifest, config and kept indices of a pruned model contradict each other."""
    if plan is None:
        return [f"{KEPT_INDICES} is missing"]
    source, target, left = (dict(shape.sizes) for shape in (plan.source, plan.target, plan.left))
    options = manifest["options"]
    layers = layer_list(plan.kept["layer"]) if "layer" in plan.kept else None
    cut = {axis: size for axis, size in target.items() if size != source[axis]}
    pairs = {
        "the kept indices give another shape than the config's": (plan.left, checkpoint.shape),
        "the manifest's shape is not that of the kept indices": (
            manifest.get("shape"), {"source": source, "target": left},
        ),
        "the manifest's kept layers are not those of the kept indices": (manifest.get("kept_layers"), layers),
        "the manifest's target sizes are not those of the kept indices": (options.get("target", cut), cut),
    }  # fmt: skip
    return [problem for problem, (one, other) in pairs.items() if one != other]


def _check_load(checkpoint: Checkpoint, found: Findings, forward: bool) -> None:
    free = free_host_memory()
    needed = sum(info.num_bytes for info in checkpoint.tensors.values())
    if needed * 5 // 4 > free:
        found.notes.append(f"not loaded: the weights need {needed / 1e9:.1f} GB, {free / 1e9:.1f} are free")
        return
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    loader = AutoModelForCausalLM if checkpoint.wrapping is None else AutoModelForImageTextToText
    try:
        with quiet():
            loaded: Any = loader.from_pretrained(checkpoint.path, dtype="auto", output_loading_info=True)
    except _FAILURES as error:
        found.problems.append(f"transformers does not load it: {first_line(error)}")
        return
    wrong = {kind: sorted(map(str, names)) for kind, names in loaded[1].items() if names}
    found.checks.append("loads with transformers")
    found.problems += [f"transformers reports {kind}: {', '.join(names[:3])}" for kind, names in wrong.items()]
    if forward:
        _check_forward(loaded[0], checkpoint, found)


def _check_forward(model: Any, checkpoint: Checkpoint, found: Findings) -> None:
    import torch

    ids = torch.arange(_TOKENS)[None] % checkpoint.shape["vocab"]
    try:
        with torch.no_grad():
            logits = model.eval()(ids, use_cache=False).logits
    except _FAILURES as error:
        found.problems.append(f"a forward pass fails: {first_line(error)}")
        return
    found.checks.append(f"a forward pass over {_TOKENS} tokens")
    if not bool(torch.isfinite(logits).all()):
        found.problems.append("a forward pass gives logits that are not finite")


def _check_source(
    directory: Path, manifest: Mapping[str, Any], model: str, moments: Path | None, found: Findings
) -> None:
    """Derive weights and config from the source and the kept indices again, and compare."""
    plan = read_plan(directory)
    if manifest["verb"] != "prune" or plan is None:
        raise MinitronError(
            f"{directory} was made by {manifest['verb']!r}: its weights do not follow from a source alone",
            "leave --source out; it re-derives pruned models only",
        )
    dequantised = manifest["inputs"]["model"].get("dequantised")
    source = open_checkpoint(model, dequantised and dequantised["dtype"])
    if manifest["options"].get("text_only"):
        source = source.unwrapped()
    if source.shape != plan.source:
        found.problems.append(f"{model} does not have the shape of the source that the kept indices refer to")
        return
    change_of = changes(source, plan, from_record(manifest, moments))
    if "expert_refit" in manifest:
        change_of = taken(change_of, open_checkpoint(directory), plan)
        found.notes.append("the experts' down projections were refitted to text: they are taken as they are")
    cut = cuts(source, plan, change_of)
    derived = write_model(None, source, cut, manifest["max_shard_bytes"], finite=False)
    if combined(source.stored, derived.source) != manifest["inputs"]["model"]["digest"]:
        found.problems.append(f"{model} is not the model that was pruned (its digest differs)")
    wrong = [name for name, digest in derived.target.items() if manifest["files"].get(name) != digest]
    unless = ", unless it was fitted with other threads or on another processor" if "compensation" in manifest else ""
    found.problems += [f"{name} does not follow from the source and the kept indices{unless}" for name in wrong]
    if written_config(source, plan) != load_whole_config(directory):
        found.problems.append("config.json does not follow from the source's and the kept indices")
    if "vocab" in plan.kept and has_tokenizer(source.path):
        expected = cut_tokenizer(tokenizer_json(source.path), plan.kept["vocab"], plan.source["vocab"])
        if expected != tokenizer_json(directory):
            found.problems.append("tokenizer.json does not follow from the source's and the kept indices")
    found.checks.append(f"{len(derived.target)} weight files derived again from {model}")
