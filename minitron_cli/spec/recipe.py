"""Recipes: chains of command lines, as values; spec/recipe_file reads them from YAML."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minitron_cli.errors import MinitronError, near_matches

# What a run directory holds beside the outputs of its steps.
STATE, PLAN, FAMILY = Path(".minitron/state.json"), Path(".minitron/recipe.json"), Path("family.json")

Value = str | int | float | bool
Values = Value | tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Verb:
    """How a verb's command line is built: which input has no flag, and how the output is named.

    `made` describes the model that the verb makes, in one word; empty where it makes none. `trains` and `cuts` say
    whether the verb updates weights, and whether its model has smaller sizes than the one that it was made from.
    """

    positional: str | None
    output_flag: str | None = "-o"
    suffix: str = ""
    made: str = ""
    trains: bool = False
    cuts: bool = False


VERBS: dict[str, Verb] = {
    "toy": Verb(None, output_flag=None),
    "train": Verb("model", made="trained", trains=True),
    "importance": Verb("model", suffix=".safetensors"),
    "prune": Verb("model", made="cut", cuts=True),
    "shear": Verb("model", made="sheared", trains=True, cuts=True),
    "distill": Verb("student", made="distilled", trains=True),
    "reference-loss": Verb(None, suffix=".json"),
    "eval": Verb("models", suffix=".json"),
    "bench": Verb("models", suffix=".json"),
}
MAKES_MODELS = tuple(name for name, verb in VERBS.items() if verb.made)


@dataclass(frozen=True, slots=True)
class Input:
    """Something the user gives. A model may carry its `config`, so that its shape is known before it is there."""

    about: str
    config: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """One command line: `inputs` are references, `options` are literal values."""

    name: str
    verb: str
    inputs: Mapping[str, tuple[str, ...]]
    options: Mapping[str, Values]

    @property
    def output(self) -> str:
        return self.name + VERBS[self.verb].suffix

    def needs(self) -> tuple[str, ...]:
        """Every reference, in order."""
        return tuple(ref for refs in self.inputs.values() for ref in refs)


@dataclass(frozen=True, slots=True)
class Recipe:
    """Steps in an order in which each needs only earlier ones; `given` are the declared inputs that have a value."""

    name: str
    about: str
    declared: Mapping[str, Input]
    steps: tuple[Step, ...]
    given: Mapping[str, str] = field(default_factory=dict)

    def step(self, name: str) -> Step:
        for step in self.steps:
            if step.name == name:
                return step
        names = [step.name for step in self.steps]
        raise MinitronError(f"the recipe has no step {name!r}", near_matches(name, names))

    def missing(self, step: Step) -> list[str]:
        """Declared inputs that the step uses and nobody has given yet."""
        names = dict.fromkeys(found[0] for found in map(declared_in, step.needs()) if found is not None)
        return [name for name in names if name not in self.given]

    def maker(self, reference: str) -> Step | None:
        """The step that makes what a reference points at, or None for a declared input."""
        return None if declared_in(reference) else self.step(reference.split("/")[0])


def declared_in(reference: str) -> tuple[str, str] | None:
    """A reference's declared input and what follows it: "{data}/a.jsonl" -> ("data", "/a.jsonl"). None: a step's."""
    name, brace, below = reference.removeprefix("{").partition("}")
    return (name, below) if reference.startswith("{") and brace else None


def command_line(recipe: Recipe, step: Step, directory: Path) -> list[str]:
    """The step as the arguments that a user would type after `minitron`."""
    return written(step, lambda reference: locate(recipe, reference, directory), str(directory / step.output))


def written(step: Step, place: Callable[[str], str], output: str) -> list[str]:
    """The step's arguments, with what `place` gives for each reference."""
    verb = VERBS[step.verb]
    words = [step.verb]
    if verb.output_flag is None:
        words.append(output)
    if verb.positional is not None:
        words += map(place, step.inputs[verb.positional])
    for key, references in step.inputs.items():
        if key != verb.positional:
            words += [word for ref in references for word in (f"--{key}", place(ref))]
    for key, value in step.options.items():
        for item in value if isinstance(value, tuple) else (value,):
            words += [f"--{key}"] if item is True else [] if item is False else [f"--{key}", str(item)]
    if verb.output_flag is not None:
        words += [verb.output_flag, output]
    return words


def locate(recipe: Recipe, reference: str, directory: Path) -> str:
    """The path (or, for a declared input, the text) that a reference means."""
    if (found := declared_in(reference)) is not None:
        name, below = found
        if name not in recipe.given:
            raise MinitronError(f"input {name!r} is not given: {recipe.declared[name].about}", f"add --set {name}=...")
        return recipe.given[name] + below
    maker, _, below = reference.partition("/")
    return str(directory / recipe.step(maker).output / below) if below else str(directory / recipe.step(maker).output)
