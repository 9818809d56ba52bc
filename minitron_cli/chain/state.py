"""The state of a run directory: its recipe, which steps were begun and finished, and a lock against a second run."""

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from minitron_cli.checkpoint.atomic import atomic_file
from minitron_cli.checkpoint.disk import held, make_directory
from minitron_cli.errors import MinitronError
from minitron_cli.spec.recipe import PLAN, STATE, Recipe, command_line


@dataclass(slots=True)
class Record:
    """What is known of a step: the fingerprint it was begun with, and what it had made when it finished.

    `digest` is of the whole output, `files` of each file in it; an equal `signature` saves hashing them again.
    `seconds` add up over the sessions of an interrupted step, without those that were killed; `forecast` and `took`
    are its cost before and after (see chain/actual_cost).
    """

    begun: str = ""
    digest: str = ""
    signature: dict[str, list[int]] = field(default_factory=dict)
    seconds: float = 0.0
    command: list[str] = field(default_factory=list)
    forecast: dict[str, Any] = field(default_factory=dict)
    took: dict[str, Any] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        return bool(self.digest)

    def changed(self, now: Mapping[str, str]) -> list[str]:
        """The files, of those there are `now`, by digest, that are not what the step has made."""
        return sorted(name for name in now.keys() | self.files.keys() if now.get(name) != self.files.get(name))


def load(directory: Path) -> dict[str, Record]:
    """Step name -> record; empty for a new run directory."""
    file = directory / STATE
    if not file.is_file():
        return {}
    try:
        return {name: Record(**record) for name, record in json.loads(file.read_text()).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise MinitronError(f"{file} is damaged: {error}", f"remove {directory} and run the recipe again") from error


def save(directory: Path, records: dict[str, Record]) -> None:
    """Write the records atomically: a killed run never leaves half a state."""
    with atomic_file(directory / STATE) as temporary:
        document: dict[str, Any] = {name: asdict(record) for name, record in records.items()}
        temporary.write_text(json.dumps(document, indent=1) + "\n")


def save_recipe(directory: Path, recipe: Recipe) -> None:
    """Keep what the run is going to do: its steps in order, with the command line of each."""
    steps = [
        {"step": step.name, "verb": step.verb, "command": command_line(recipe, step, directory)}
        for step in recipe.steps
    ]  # fmt: skip
    with atomic_file(directory / PLAN) as temporary:
        document = {"recipe": recipe.name, "about": recipe.about, "steps": steps}
        temporary.write_text(json.dumps(document, indent=1) + "\n")


def lock(directory: Path) -> AbstractContextManager[None]:
    """Make and hold the run directory."""
    folder = (directory / STATE).parent
    make_directory(folder)
    busy = f"another `minitron run` is working in {directory}"
    return held(folder, busy, "wait for it, or choose another directory with -o")
