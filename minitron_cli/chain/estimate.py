"""What a recipe will take, before it is run: models, tokens, FLOPs, disk and memory of every step.

Each step's options become the request of its verb, so that an estimate follows from what the verb itself would do.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from minitron_cli.checkpoint.architecture import Architecture, architecture_of
from minitron_cli.errors import MinitronError
from minitron_cli.hf.beside import beside_of
from minitron_cli.hf.context import context_length, sequence_length
from minitron_cli.importance.forecast import pass_cost
from minitron_cli.importance.options import Options as ImportanceOptions
from minitron_cli.prune.request import request_from_options
from minitron_cli.prune.resolve import resolve as resolve_prune
from minitron_cli.spec.axes import AXIS_OF_FLAG
from minitron_cli.spec.flags import typed_fields
from minitron_cli.spec.recipe import VERBS, Recipe, Step
from minitron_cli.training import preflight
from minitron_cli.training.defaults import USUAL_LENGTH, export_steps, fill_sharding, fill_steps
from minitron_cli.training.options import Options as TrainingOptions
from minitron_cli.training.presets import resolve as resolve_training
from minitron_cli.training.stretches import stretches_of

_ITEM_BYTES = {"float32": 4}  # of computed values; two in every other dtype


@dataclass(frozen=True, slots=True)
class Estimate:
    """One step's cost. `model` is the model it makes; None where it makes none, or none that can be known yet.

    `disk_bytes` are the weights that it leaves, `working_bytes` the most that is on disk meanwhile (saved steps of a
    training run), `memory_bytes` what training holds on a device; 0 where nothing is known.
    """

    step: Step
    model: Architecture | None = None
    tokens: int = 0
    flops: float = 0.0
    disk_bytes: int = 0
    working_bytes: int = 0
    memory_bytes: int = 0


def estimate(recipe: Recipe, configs: Mapping[str, Mapping[str, Any]] | None = None) -> list[Estimate]:
    """Walk the steps by shape alone. `configs` gives config dictionaries of references that exist already.

    Raises MinitronError where a step asks for what its verb refuses.
    """
    declared = {f"{{{name}}}": given.config for name, given in recipe.declared.items() if given.config is not None}
    given = {**declared, **(configs or {})}
    models = {reference: architecture_of(config, beside_of(config)) for reference, config in given.items()}
    found = []
    for step in recipe.steps:
        try:
            cost = _estimate_step(step, models)
        except MinitronError as error:
            raise MinitronError(f"step {step.name!r}: {error.message}", error.hint) from error
        if cost.model is not None:
            models[step.name] = cost.model
        found.append(cost)
    return found


def _estimate_step(step: Step, models: Mapping[str, Architecture]) -> Estimate:
    main = step.inputs.get(VERBS[step.verb].positional or "", ("",))[0]
    if main not in models:
        return Estimate(step)
    if step.verb == "importance":
        return _importance(step, models[main])
    if step.verb == "prune":
        return _prune(step, main, models[main])
    if step.verb == "shear":
        return _shear(step, main, models[main])
    if step.verb in ("train", "distill"):
        teachers = {reference: models[reference] for reference in step.inputs.get("teacher", ()) if reference in models}
        return _training(step, models[main], teachers)
    return Estimate(step)


def _importance(step: Step, model: Architecture) -> Estimate:
    options = ImportanceOptions(**typed_fields(ImportanceOptions, {**step.inputs, **step.options}))
    tokens, flops = pass_cost(model, options, step.inputs["model"][0])
    return Estimate(step, None, tokens, float(flops))


def _prune(step: Step, source: str, model: Architecture) -> Estimate:
    """With --data the calibration pass that comes first counts too, and refitting experts."""
    files = {key: references for key, references in step.inputs.items() if key != "model"}
    request = request_from_options(source, {**files, **step.options})
    resolved = resolve_prune(request, model)
    if resolved.needed and request.scores is None and not request.data:
        raise MinitronError(
            f"no scores for {', '.join(resolved.needed)}: pruning needs to know what matters",
            "add `scores` (of an importance step) or `data` to the step's inputs",
        )
    tokens, flops = 0, 0.0
    if resolved.measurement is not None:
        measured = resolved.measurement
        options = ImportanceOptions(data=measured.data, samples=measured.samples, seq_len=measured.seq_len)
        tokens, flops = pass_cost(model, options, source)
    if resolved.refit is not None:
        tokens, flops = tokens + resolved.refit.tokens, flops + resolved.refit.flops
    result = resolved.result
    if request.text_only:
        result = replace(result, beside=())
    return Estimate(step, result, tokens, float(flops), result.disk_bytes, result.disk_bytes)


def _shear(step: Step, source: str, model: Architecture) -> Estimate:
    """A training of the whole model, and what is left of it."""
    sizes = {flag: value for flag, value in step.options.items() if flag in AXIS_OF_FLAG}
    rest = {name: value for name, value in step.options.items() if name not in sizes}
    teachers = {"itself": model} if step.options.get("loss") == "logits" else {}
    trained = _training(replace(step, options={**rest, "loss": "auto"}), model, teachers)
    result = resolve_prune(request_from_options(source, sizes), model).result
    return replace(trained, step=step, model=result, disk_bytes=result.disk_bytes)


def _training(step: Step, source: Architecture, teachers: Mapping[str, Architecture]) -> Estimate:
    """Memory is that of one sequence at a time in bfloat16, unless the step says otherwise."""
    ranks = int(str(step.options.get("nproc", 1)))
    options = fill_sharding(_training_options(step, {"the student": source, **teachers}), ranks)
    assert options.seq_len is not None
    stretches = () if options.steps is None else stretches_of(options)
    made = source
    if options.export_dtype is not None:
        made = replace(source, config={**source.config, "dtype": options.export_dtype})
    figures = {
        length: [preflight.size_of_config(model.config, length) for model in (made, *teachers.values())]
        for length in {options.seq_len, *(stretch.seq_len for stretch in stretches)}
    }
    longest = max(figures)
    student, *others = figures[longest]
    item = _ITEM_BYTES.get(options.dtype, 2)
    need = preflight.memory(
        student, others, tokens=max((options.micro_batch or 1) * options.seq_len, longest),
        world=ranks, item=item,
        teacher_item=item if options.teacher_dtype == "auto" else _ITEM_BYTES.get(options.teacher_dtype, 2),
        shard_teacher=bool(options.shard_teacher), checkpointing=options.checkpoint_activations,
    )  # fmt: skip
    tokens, flops = 0, 0.0
    for stretch in stretches:
        student, *others = figures[stretch.seq_len]
        tokens += stretch.tokens
        flops += stretch.tokens * preflight.training_flops(student, others)
    working = preflight.disk(student, options.keep + (options.mirror is not None), made.num_bytes // made.parameters)
    working += len(export_steps(options)) * made.disk_bytes if options.export_at and stretches else 0
    if made.beside:  # the text model is written by itself before it goes back into the whole
        working += made.disk_bytes
    return Estimate(step, made, tokens, flops, made.disk_bytes, working, need.total())


def _training_options(step: Step, models: Mapping[str, Architecture]) -> TrainingOptions:
    """The options of a training step with its length: `steps` stays None where only the data decides."""
    inputs = {"student": "", "data": ("",), "output": step.output}
    named = {"phases" if flag == "phase" else flag: value for flag, value in step.options.items()}
    given = {**inputs, "verb": step.verb, **typed_fields(TrainingOptions, named)}
    preset = step.options.get("preset")
    options = resolve_training(given, None if preset is None else str(preset))
    contexts = {name: context_length(model.config) for name, model in models.items()}
    options = replace(options, seq_len=sequence_length(options.seq_len, USUAL_LENGTH, contexts))
    unknown = options.steps is None and options.tokens is None
    return options if unknown else fill_steps(options)
