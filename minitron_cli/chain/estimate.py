"""What a recipe will take, before it is run: shapes, parameters, tokens, FLOPs, disk and memory of every step."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import ceil
from typing import Any

from minitron_cli.checkpoint.hfconfig import config_for
from minitron_cli.errors import MinitronError
from minitron_cli.families import family_of
from minitron_cli.importance.options import DEFAULT_SEQ_LEN
from minitron_cli.importance.options import Options as ImportanceOptions
from minitron_cli.spec.axes import AXIS_OF_FLAG
from minitron_cli.spec.family import Family
from minitron_cli.spec.recipe import VERBS, Recipe, Step, Values
from minitron_cli.spec.shape import Shape, check_target, flops_per_token, num_parameters, shape_of
from minitron_cli.training import preflight
from minitron_cli.training.defaults import USUAL_LENGTH
from minitron_cli.training.options import Options as TrainingOptions
from minitron_cli.training.presets import PRESETS

# What the verbs take where a step does not say.
_TRAINING = {field.name: field.default for field in fields(TrainingOptions)}
_IMPORTANCE = {field.name: field.default for field in fields(ImportanceOptions)}


@dataclass(frozen=True, slots=True)
class Model:
    """A model that a step makes or is given: enough of it to count."""

    family: Family
    config: Mapping[str, Any]
    shape: Shape

    @property
    def parameters(self) -> int:
        return num_parameters(self.family.expected(self.config), self.shape)

    @property
    def item(self) -> int:
        """Bytes of a stored weight; bfloat16 where the config does not say."""
        dtype = str(self.config.get("dtype") or self.config.get("torch_dtype") or "bfloat16")
        return 4 if dtype.removeprefix("torch.") == "float32" else 2

    @property
    def non_embedding(self) -> int:
        return num_parameters(self.family.expected(self.config), self.shape, embedding=False)

    def config_of_shape(self) -> dict[str, Any]:
        """The config with the sizes of the shape, which pruning may have changed."""
        return config_for(self.config, self.family, self.shape)

    def flops(self, context: int) -> int:
        return flops_per_token(self.family.expected(self.config), self.shape, context)


@dataclass(frozen=True, slots=True)
class Estimate:
    """One step's cost. `model` is what it makes, None where that cannot be known yet or is no model.

    `disk_bytes` are the weights that it leaves, `working_bytes` the most that lies there meanwhile (saved steps of a
    training run), `memory_bytes` what training holds on a device; 0 where nothing is known.
    """

    step: Step
    model: Model | None
    tokens: int = 0
    flops: float = 0.0
    disk_bytes: int = 0
    working_bytes: int = 0
    memory_bytes: int = 0


def model_from_config(config: Mapping[str, Any]) -> Model:
    """A model by its config.json dictionary alone."""
    family = family_of(str(config.get("model_type")))
    return Model(family, config, shape_of(family, config))


def estimate(recipe: Recipe, configs: Mapping[str, Mapping[str, Any]] | None = None) -> list[Estimate]:
    """Walk the steps by shape alone. `configs` gives config dictionaries of references that exist already.

    Training costs 6 FLOPs per weight and token for the student (forward and backward) and 2 for the teacher;
    measuring costs one forward pass over its samples.
    """
    models: dict[str, Model] = {}
    for name, given in recipe.declared.items():
        if given.config is not None:
            models[f"{{{name}}}"] = model_from_config(given.config)
    for reference, config in (configs or {}).items():
        models[reference] = model_from_config(config)
    found = []
    for step in recipe.steps:
        made = _model(step, models)
        if made is not None:
            models[step.name] = made
        found.append(_cost(step, made, models))
    return found


def _model(step: Step, models: Mapping[str, Model]) -> Model | None:
    """The model that a step makes, or None."""
    source = models.get(step.inputs[VERBS[step.verb].positional or ""][0]) if step.inputs else None
    if source is None or step.verb not in ("train", "distill", "prune"):
        return None
    return _pruned(step, source) if step.verb == "prune" else source


def _pruned(step: Step, source: Model) -> Model:
    sizes = {axis: int(_number(step.options[key])) for key, axis in AXIS_OF_FLAG.items() if key in step.options}
    if "drop-layers" in step.options:
        sizes["layer"] = source.shape["layer"] - _count_layers(str(step.options["drop-layers"]))
    shape = source.shape.with_(**sizes)
    check_target(source.family, source.shape, shape)
    return Model(source.family, source.config, shape)


def _count_layers(text: str) -> int:
    ends = [part.split("-") for part in text.split(",")]
    return sum(int(end[-1]) - int(end[0]) + 1 for end in ends)


def _cost(step: Step, made: Model | None, models: Mapping[str, Model]) -> Estimate:
    disk = made.parameters * made.item if made is not None else 0
    if step.verb == "importance":
        return _measuring(step, models.get(step.inputs["model"][0]))
    if step.verb in ("train", "distill") and made is not None:
        teachers = [models[ref] for ref in step.inputs.get("teacher", ()) if ref in models]
        return _training(step, made, teachers)
    return Estimate(step, made, disk_bytes=disk, working_bytes=disk)


def _measuring(step: Step, source: Model | None) -> Estimate:
    """One forward pass over the samples; nothing where the metric needs none."""
    if source is None or step.options.get("metric", "activation") not in ("activation", "wanda"):
        return Estimate(step, None)
    context = int(_number(step.options.get("seq-len", _context([source], DEFAULT_SEQ_LEN))))
    tokens = int(_number(step.options.get("samples", _IMPORTANCE["samples"]))) * context
    return Estimate(step, None, tokens, float(tokens * source.flops(context)))


def _training(step: Step, made: Model, teachers: list[Model]) -> Estimate:
    """Memory is that of one sequence at a time in bfloat16, unless the step says otherwise."""
    options = {**_preset(step), **step.options}
    context = int(_number(options.get("seq-len", _context([made, *teachers], USUAL_LENGTH))))
    tokens = training_tokens(options, context)
    per_token = 3 * made.flops(context) + sum(t.flops(context) for t in teachers)
    student, *others = (preflight.size_of_config(m.config_of_shape(), context) for m in (made, *teachers))
    item = 4 if options.get("dtype") == "float32" else 2
    need = preflight.memory(
        student, others, tokens=int(_number(options.get("micro-batch", 1))) * context,
        world=int(_number(options.get("nproc", 1))), item=item,
        teacher_item=4 if options.get("teacher-dtype") == "float32" else item,
        shard_teacher=options.get("shard-teacher") is True,
        checkpointing=options.get("checkpoint-activations") is True,
    )  # fmt: skip
    width = {"float32": 4, "bfloat16": 2, "float16": 2}.get(str(options.get("export-dtype")), made.item)
    keep = int(_number(options.get("keep", _TRAINING["keep"])))
    disk = made.parameters * width
    working = preflight.disk(student, keep, width)
    return Estimate(step, made, tokens, float(tokens) * per_token, disk, working, need.total())


def _context(models: list[Model], usual: int) -> int:
    """The shortest context among the models, `usual` at the most: what the verbs take without --seq-len."""
    stated = [int(m.config.get("max_position_embeddings") or usual) for m in models]
    return min([usual, *stated])


def _preset(step: Step) -> dict[str, Values]:
    """The settings of a step's --preset, under the names of the options; typed ones go before them."""
    found = {key.replace("_", "-"): value for key, value in PRESETS.get(str(step.options.get("preset")), {}).items()}
    if "steps" in step.options:
        found.pop("tokens", None)
    return found


def training_tokens(options: Mapping[str, Values], seq_len: int) -> int:
    """Tokens of a training step: whole batches up to `tokens`, or steps of them; 0 for one pass over unknown data."""
    batch = int(_number(options.get("batch", _TRAINING["batch"]))) * seq_len
    if "tokens" in options:
        return ceil(_number(options["tokens"]) / batch) * batch
    return int(_number(options.get("steps", 0))) * batch


def _number(value: Any) -> float:
    """A number as recipes write it: 94B, 1_000, 32."""
    text = str(value).replace("_", "").replace(",", "").upper()
    factor = {"K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}.get(text[-1:], 1)
    try:
        return float(text[:-1] if factor != 1 else text) * factor
    except ValueError as error:
        raise MinitronError(f"{value!r} is not a number", "write it like 94B, 1_000 or 32") from error
