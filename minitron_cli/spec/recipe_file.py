"""Read a recipe from YAML, strictly.

    about: what this makes
    inputs:
      data: pre-training text                      # given by the user: --set data=PATH
    steps:
      scores:
        verb: importance
        inputs: {model: large, data: world/corpus/train.jsonl}
        options: {samples: 1024}

A step's output is in the run directory under the step's name. An input is the name of an earlier step, a path below
one (`world/corpus/train.jsonl`), or `{name}` of a declared input; a list gives several.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from minitron_cli.errors import MinitronError, near_matches
from minitron_cli.spec.recipe import FAMILY, VERBS, Input, Recipe, Step, Value, Values, declared_in

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
# What a run keeps beside the steps' outputs, and the options that it sets itself.
_RESERVED = (str(FAMILY), "report.html")
_DECIDED = ("output", "dry-run", "json", "help")


def load_recipe(path: Path, options: Mapping[str, Collection[str]] | None = None) -> Recipe:
    """Read a recipe; unknown keys, verbs, references and (where `options` lists them by verb) options are errors."""
    document = _keys(_read(path), {"about", "inputs", "steps"}, {"steps"}, f"{path}")
    declared = {k: _input(k, v) for k, v in _mapping(document.get("inputs") or {}, "inputs").items()}
    steps = [_step(name, entry, options) for name, entry in _mapping(document["steps"], "steps").items()]
    if not steps:
        raise MinitronError(f"{path} has no steps", "see recipes/tiny.yaml for the form")
    recipe = Recipe(path.stem, str(document.get("about", "")), declared, tuple(steps))
    _check_outputs(recipe)
    return replace(recipe, steps=_ordered(recipe))


def apply_settings(recipe: Recipe, settings: Sequence[str], options: Mapping[str, Collection[str]]) -> Recipe:
    """`STEP.option=value` replaces an option, `input=path` gives a declared input."""
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise MinitronError(f"--set {setting!r} has no value", "write it like --set distill.steps=100")
        if "." not in key:
            if key not in recipe.declared:
                known = near_matches(key, list(recipe.declared)) if recipe.declared else "it takes none"
                raise MinitronError(
                    f"the recipe declares no input {key!r}", f"{known}; options are set as STEP.option=value"
                )
            recipe = replace(recipe, given={**recipe.given, key: text})
            continue
        name, option = key.split(".", 1)
        step = recipe.step(name)
        _check_options(step.name, step.verb, {option: text}, options)
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise MinitronError(
                f"--set {setting!r}: the value is not YAML", f"put it in quotes: {key}='\"...\"'"
            ) from error
        changed = replace(step, options={**step.options, option: _values(value, key)})
        recipe = replace(recipe, steps=tuple(changed if s.name == name else s for s in recipe.steps))
    return recipe


class _Loader(yaml.SafeLoader):
    """YAML keeps the last of two equal keys in silence; here that is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise yaml.constructor.ConstructorError(None, None, f"{twice[0]!r} is there twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _read(path: Path) -> Any:
    try:
        return yaml.load(path.read_text(), _Loader)
    except FileNotFoundError as error:
        raise MinitronError(f"there is no recipe at {path}", "see `minitron recipes ls`") from error
    except (yaml.YAMLError, UnicodeDecodeError, IsADirectoryError) as error:
        raise MinitronError(f"{path} is not a YAML recipe: {' '.join(str(error).split())}", "fix the file") from error


def _input(name: str, entry: Any) -> Input:
    if isinstance(entry, str):
        return Input(entry)
    entry = _keys(entry, {"about", "config"}, {"about"}, f"input {name!r}")
    return Input(
        str(entry["about"]), _mapping(entry["config"], f"input {name!r}: config") if "config" in entry else None
    )


def _step(name: str, entry: Any, options: Mapping[str, Collection[str]] | None) -> Step:
    if not _NAME.fullmatch(name):
        raise MinitronError(f"step name {name!r} cannot name a directory", "use letters, digits, '.', '_' and '-'")
    entry = _keys(entry, {"verb", "inputs", "options"}, {"verb"}, f"step {name!r}")
    verb = str(entry["verb"])
    if verb not in VERBS:
        raise MinitronError(f"step {name!r}: unknown verb {verb!r}", near_matches(verb, list(VERBS)))
    inputs = {
        key: tuple(map(str, value)) if isinstance(value, list) else (str(value),)
        for key, value in _mapping(entry.get("inputs") or {}, f"step {name!r}: inputs").items()
    }
    values = _mapping(entry.get("options") or {}, f"step {name!r}: options")
    positional = VERBS[verb].positional
    if positional is not None and positional not in inputs:
        raise MinitronError(f"step {name!r} names no {positional!r} input", f"a {verb} step needs inputs.{positional}")
    if options is not None:
        _check_options(name, verb, {**{k: v for k, v in inputs.items() if k != positional}, **values}, options)
    return Step(name, verb, inputs, {key: _values(value, f"{name}.{key}") for key, value in values.items()})


def _check_outputs(recipe: Recipe) -> None:
    """Two steps must not write to one place, nor over what the run itself keeps. To some disks a and A are the same."""
    taken = dict.fromkeys(_RESERVED, "the run itself")
    for step in recipe.steps:
        place = step.output.lower()
        if place in taken:
            raise MinitronError(
                f"step {step.name!r} would write to {step.output}, as {taken[place]} does", "give it another name"
            )
        taken[place] = f"step {step.name!r}"


def _check_options(name: str, verb: str, given: Mapping[str, Any], options: Mapping[str, Collection[str]]) -> None:
    for key in given:
        if key in _DECIDED:
            raise MinitronError(
                f"step {name!r}: --{key} is set by `run`, not by a step",
                "outputs are named after their steps",
            )
        if key not in options[verb]:
            raise MinitronError(
                f"step {name!r}: `minitron {verb}` has no option {key!r}", near_matches(key, sorted(options[verb]))
            )


def _ordered(recipe: Recipe) -> tuple[Step, ...]:
    """Steps sorted so that each comes after what it needs; a cycle or an unknown reference is an error."""
    done: list[Step] = []
    doing: list[str] = []

    def visit(step: Step) -> None:
        if step in done:
            return
        if step.name in doing:
            chain = " -> ".join([*doing[doing.index(step.name) :], step.name])
            raise MinitronError(f"the steps form a cycle: {chain}", "a step can only use what earlier steps made")
        doing.append(step.name)
        for reference in step.needs():
            _check_reference(recipe, step, reference)
            if (maker := recipe.maker(reference)) is not None:
                visit(maker)
        doing.pop()
        done.append(step)

    for step in recipe.steps:
        visit(step)
    return tuple(done)


def _check_reference(recipe: Recipe, step: Step, reference: str) -> None:
    names = [s.name for s in recipe.steps]
    if (found := declared_in(reference)) is not None:
        if found[0] not in recipe.declared:
            raise MinitronError(
                f"step {step.name!r} uses the input {found[0]!r}, which is not declared",
                near_matches(found[0], list(recipe.declared)) if recipe.declared else "declare it under `inputs:`",
            )
    elif reference.split("/")[0] not in names:
        raise MinitronError(
            f"step {step.name!r} needs {reference!r}, which no step makes", near_matches(reference.split("/")[0], names)
        )


def _keys(value: Any, allowed: set[str], required: set[str], where: str) -> dict[str, Any]:
    mapping = _mapping(value, where)
    for key in mapping:
        if key not in allowed:
            raise MinitronError(f"{where}: unknown key {key!r}", near_matches(key, sorted(allowed)))
    if missing := sorted(required - mapping.keys()):
        raise MinitronError(f"{where}: lacks {', '.join(missing)}", f"keys: {', '.join(sorted(allowed))}")
    return mapping


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise MinitronError(
            f"{where} is not a mapping of names but {'empty' if value is None else repr(value)[:60]}",
            "see recipes/tiny.yaml for the form",
        )
    if wrong := [key for key in value if not isinstance(key, str)]:
        raise MinitronError(f"{where}: {wrong[0]!r} is not a name", "put it in quotes, or use letters")
    return value


def _values(value: Any, where: str) -> Values:
    if isinstance(value, list):
        return tuple(_scalar(item, where) for item in value)
    return _scalar(value, where)


def _scalar(value: Any, where: str) -> Value:
    if not isinstance(value, str | int | float | bool):
        raise MinitronError(
            f"{where}: {value!r} is not an option value", "give text, a number, true or false, or a list"
        )
    return value
