"""The JSON files of a run, each checked for what the page needs before anything is made of it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any

from minitron_cli.errors import MinitronError
from minitron_cli.report.read.values import Step
from minitron_cli.spec.recipe import FAMILY, PLAN, STATE, VERBS

_NUMBER = (int, float)
_STEP = {"command": list, "digest": str, "seconds": _NUMBER}
_PLANNED = {"step": str, "verb": str, "command": list}
_FAMILY_STEP = {"step": str, "command": list, "seconds": _NUMBER}
_FAMILY_MODEL = {"name": str, "parameters": int, "shape": dict}
_EVALUATED = {"name": str, "path": str}
# A figure that was not finite is null in a results file.
_ROW = {
    "task": str,
    "metric": str,
    "model": str,
    "value": (*_NUMBER, NoneType),
    "num_samples": int,
    "higher_is_better": bool,
}
_BENCH_FIGURES = (
    *("ratios", "prefill_tokens_per_second", "decode_tokens_per_second"),
    *("time_to_first_token", "time_per_output_token"),
)
_BENCH_ROW = {"model": str, "input": int, "output": int, "batch": int, **dict.fromkeys(_BENCH_FIGURES, dict)}


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object; empty where the file is absent."""
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text())
    except ValueError as error:
        raise MinitronError(f"{file} is not valid JSON: {error}", "make it again") from error
    if not isinstance(found, dict):
        raise MinitronError(f"{file} holds no JSON object", "make it again")
    return found


def read_family(file: Path) -> dict[str, Any]:
    """family.json."""
    return _checked(file, "run the recipe again", models=_FAMILY_MODEL, steps=_FAMILY_STEP)


def read_recipe(directory: Path) -> dict[str, Any]:
    """What the run set out to do: `recipe`, `about` and its `steps`; empty where a run did not keep it."""
    return _checked(directory / PLAN, "run the recipe again", steps=_PLANNED)


def read_evaluation(file: Path) -> dict[str, Any]:
    """The results of `minitron eval`."""
    return _checked(file, "evaluate again", models=_EVALUATED, rows=_ROW)


def read_bench(file: Path) -> dict[str, Any]:
    """The results of `minitron bench`."""
    return _checked(file, "bench again", rows=_BENCH_ROW)


def read_steps(directory: Path, family: Mapping[str, Any]) -> tuple[Step, ...]:
    """The steps that have begun, from the run's own state; from family.json where only that was kept."""
    file = directory / STATE
    if not file.is_file():
        if "steps" not in family:
            raise MinitronError(f"{directory / FAMILY} is damaged: it has no steps", "run the recipe again")
        return tuple(_step(directory, s["step"], s["command"][1:], "done", s) for s in family["steps"])
    records = read_json(file)
    _check(file, list(records.values()), _STEP, "run the recipe again")
    return tuple(
        _step(directory, name, record["command"], "done" if record["digest"] else "begun", record)
        for name, record in records.items()
        if record["command"]  # a step that was looked at, and has not begun
    )


def steps_to_come(directory: Path, recipe: Mapping[str, Any], begun: Sequence[Step]) -> tuple[Step, ...]:
    """The steps of the recipe that have not begun, in their order."""
    known = {step.name for step in begun}
    planned = [s for s in recipe.get("steps", ()) if s["step"] not in known]
    return tuple(_step(directory, s["step"], s["command"], "to come", {}) for s in planned)


def _step(directory: Path, name: str, command: Sequence[str], state: str, record: Mapping[str, Any]) -> Step:
    verb = command[0] if command else ""
    suffix = VERBS[verb].suffix if verb in VERBS else ""
    cost = [record.get(key) or {} for key in ("forecast", "took")]
    return Step(name, verb, tuple(command), directory / (name + suffix), state, record.get("seconds") or None, *cost)


def _checked(file: Path, hint: str, **lists: Mapping[str, Any]) -> dict[str, Any]:
    """The object in `file`, whose `lists` hold entries with such fields."""
    found = read_json(file)
    for key, fields in lists.items():
        entries = found.get(key, [])
        if not isinstance(entries, list):
            raise MinitronError(f"{file}: {key} is not a list", hint)
        _check(file, entries, fields, hint)
    return found


def _check(file: Path, entries: Sequence[Any], fields: Mapping[str, Any], hint: str) -> None:
    """Every entry is an object with these fields of these types; the first that is not is named."""
    for number, entry in enumerate(entries):
        known = entry if isinstance(entry, dict) else {}
        wrong = [key for key, kind in fields.items() if not isinstance(known.get(key), kind)]
        if wrong:
            raise MinitronError(f"{file} is damaged: entry {number} has no valid {', '.join(wrong)}", hint)
