"""What a recipe will take, before it is run: shapes, parameters, tokens, FLOPs, disk and GPU hours of every step."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from minitron_cli.families import family_of
from minitron_cli.spec.family import Family
from minitron_cli.spec.recipe import VERBS, Recipe, Step, Values
from minitron_cli.spec.shape import Shape, check_target, flops_per_token, num_parameters, shape_of

_AXIS_OF_OPTION = {
    "hidden": "hidden", "ffn": "ffn", "heads": "head", "kv-heads": "kv", "layers": "layer", "experts": "expert",
    "expert-ffn": "expert_ffn",
}  # fmt: skip


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
    def non_embedding(self) -> int:
        return num_parameters(self.family.expected(self.config), self.shape, embedding=False)

    def flops(self, context: int) -> int:
        return flops_per_token(self.family.expected(self.config), self.shape, context)


@dataclass(frozen=True, slots=True)
class Estimate:
    """One step's cost. `model` is what it makes, None where that can not be known yet or is no model."""

    step: Step
    model: Model | None
    tokens: int
    flops: float
    disk_bytes: float


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
    sizes = {axis: int(_number(step.options[key])) for key, axis in _AXIS_OF_OPTION.items() if key in step.options}
    if "drop-layers" in step.options:
        sizes["layer"] = source.shape["layer"] - _count_layers(str(step.options["drop-layers"]))
    shape = source.shape.with_(**sizes)
    check_target(source.family, source.shape, shape)
    return Model(source.family, source.config, shape)


def _count_layers(text: str) -> int:
    ends = [part.split("-") for part in text.split(",")]
    return sum(int(end[-1]) - int(end[0]) + 1 for end in ends)


def _cost(step: Step, made: Model | None, models: Mapping[str, Model]) -> Estimate:
    disk = 2.0 * made.parameters if made is not None else 0.0
    context = int(_number(step.options.get("seq-len", 1024)))
    if step.verb == "importance":
        tokens = int(_number(step.options.get("samples", 1024))) * context
        source = models.get(step.inputs["model"][0])
        return Estimate(step, None, tokens, float(tokens * source.flops(context)) if source else 0.0, 0.0)
    if step.verb not in ("train", "distill"):
        return Estimate(step, made, 0, 0.0, disk)
    tokens = training_tokens(step.options, context)
    teachers = [models[ref] for ref in step.inputs.get("teacher", ()) if ref in models]
    per_token = (3 * made.flops(context) if made is not None else 0) + sum(t.flops(context) for t in teachers)
    return Estimate(step, made, tokens, float(tokens) * per_token, disk)


def training_tokens(options: Mapping[str, Values], seq_len: int) -> int:
    """Tokens of a training step: `tokens` as given, or steps x batch x seq-len."""
    if "tokens" in options:
        return int(_number(options["tokens"]))
    return int(_number(options.get("steps", 0)) * _number(options.get("batch", 1))) * seq_len


def _number(value: Values) -> float:
    """A number as recipes write it: 94B, 1_000, 32."""
    text = str(value).replace("_", "").replace(",", "").upper()
    factor = {"K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}.get(text[-1:], 1)
    return float(text[:-1] if factor != 1 else text) * factor
