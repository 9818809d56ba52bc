"""The JSON files of a run, each checked for what the page needs before anything is made of it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from minitron_cli.errors import MinitronError
from minitron_cli.report.read.values import Step
from minitron_cli.spec.recipe import VERBS

STATE = Path(".minitron") / "state.json"
RECIPE = Path(".minitron") / "recipe.json"
FAMILY = "family.json"

_STEP = {"command": list, "digest": str, "seconds": (int, float)}
_PLANNED = {"step": str, "verb": str, "command": list}
_FAMILY_STEP = {"step": str, "command": list, "seconds": (int, float)}
_FAMILY_MODEL = {"name": str, "parameters": int, "shape": dict}
_EVALUATED = {"name": str, "path": str}
_BENCH_ROW = {
    "model": str,
    "input": int,
    "output": int,
    "batch": int,
    "ratios": dict,
    "prefill_tokens_per_second": dict,
    "decode_tokens_per_second": dict,
    "time_to_first_token": dict,
    "time_per_output_token": dict,
}
_ROW = {"task": str, "metric": str, "model": str, "value": (int, float), "num_samples": int, "higher_is_better": bool}


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object."""
    try:
        found = json.loads(file.read_text())
    except ValueError as error:
        raise MinitronError(f"{file} is not valid JSON: {error}", "make it again") from error
    if not isinstance(found, dict):
        raise MinitronError(f"{file} holds no JSON object", "make it again")
    return found


def read_family(file: Path) -> dict[str, Any]:
    """family.json, empty where it is not there."""
    if not file.is_file():
        return {}
    found = read_json(file)
    _check(file, _list(file, found, "models"), _FAMILY_MODEL, "run the recipe again")
    _check(file, _list(file, found, "steps"), _FAMILY_STEP, "run the recipe again")
    return found


def read_steps(directory: Path, family: Mapping[str, Any]) -> tuple[Step, ...]:
    """The steps that have begun, from the run's own state; from family.json where only that was kept."""
    file = directory / STATE
    if not file.is_file():
        return tuple(_step(directory, s["step"], s["command"][1:], "done", s["seconds"]) for s in family["steps"])
    records = read_json(file)
    _check(file, list(records.values()), _STEP, "run the recipe again")
    return tuple(
        _step(directory, name, r["command"], "done" if r["digest"] else "begun", r["seconds"])
        for name, r in records.items()
        if r["command"]  # a step that was looked at, and has not begun
    )


def read_recipe(directory: Path) -> dict[str, Any]:
    """What the run set out to do: `recipe`, `about` and its `steps`; empty where a run did not keep it."""
    file = directory / RECIPE
    if not file.is_file():
        return {}
    found = read_json(file)
    _check(file, _list(file, found, "steps"), _PLANNED, "run the recipe again")
    return found


def steps_to_come(directory: Path, recipe: Mapping[str, Any], begun: Sequence[Step]) -> tuple[Step, ...]:
    """The steps of the recipe that have not begun, in their order."""
    known = {step.name for step in begun}
    planned = [s for s in recipe.get("steps", ()) if s["step"] not in known]
    return tuple(_step(directory, s["step"], s["command"], "to come", 0.0) for s in planned)


def read_evaluation(file: Path) -> dict[str, Any]:
    """The results of `minitron eval`."""
    found = read_json(file)
    _check(file, _list(file, found, "models"), _EVALUATED, "evaluate again")
    _check(file, _list(file, found, "rows"), _ROW, "evaluate again")
    return found


def read_bench(file: Path) -> dict[str, Any]:
    """The results of `minitron bench`."""
    found = read_json(file)
    _check(file, _list(file, found, "rows"), _BENCH_ROW, "bench again")
    return found


def _step(directory: Path, name: str, command: Sequence[str], state: str, seconds: float) -> Step:
    verb = command[0]
    suffix = VERBS[verb].suffix if verb in VERBS else ""
    return Step(name, verb, tuple(command), directory / (name + suffix), state, seconds or None)


def _list(file: Path, found: Mapping[str, Any], key: str) -> Sequence[Any]:
    value = found.get(key, [])
    if not isinstance(value, list):
        raise MinitronError(f"{file}: {key} is no list", "make it again")
    return value


def _check(file: Path, entries: Sequence[Any], fields: Mapping[str, Any], hint: str) -> None:
    """Every entry is an object with these fields of these types; the first that is not is named."""
    for number, entry in enumerate(entries):
        wrong = [
            key for key, kind in fields.items() if not isinstance(entry, dict) or not isinstance(entry.get(key), kind)
        ]
        if wrong:
            raise MinitronError(f"{file} is damaged: entry {number} has no valid {', '.join(wrong)}", hint)
