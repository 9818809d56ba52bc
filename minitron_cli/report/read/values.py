"""What the page is made from. Everything that a run may not have yet is None or empty."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minitron_cli.spec.plan import Plan
from minitron_cli.spec.scores import Scores


@dataclass(frozen=True, slots=True)
class Step:
    """One command line of the run, as it was typed. `state` is "done", "begun" or "to come"; `seconds` None where
    unknown. `forecast` and `actual` are its cost before and after, empty where nobody counted.
    """

    name: str
    verb: str
    command: tuple[str, ...]
    output: Path
    state: str
    seconds: float | None
    forecast: Mapping[str, Any]
    actual: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Curve:
    """What a training run wrote down: `logged` every so many updates, `evaluated` on held-out text now and then.

    Both are column tables: name -> (line,) float64, NaN where a line lacks the name; `step`, `tokens` and `flops` are
    always there. `total_steps` is how long the run is meant to be.
    """

    logged: Mapping[str, np.ndarray]
    evaluated: Mapping[str, np.ndarray]
    total_steps: int | None
    machine: str | None = None

    @property
    def steps_done(self) -> int:
        return int(max([0.0, *(float(t["step"][-1]) for t in (self.logged, self.evaluated) if len(t["step"]))]))


@dataclass(frozen=True, slots=True)
class Model:
    """A model of the family. `parent` and `teachers` are names of models of the run, or what the command line names.

    `tokens` and `flops` are what its own training has spent so far; losses are nats per token.
    """

    name: str
    verb: str
    path: Path
    state: str
    parent: str | None
    teachers: tuple[str, ...]
    facts: Mapping[str, Any]  # parameters, without embeddings, bytes of caches, shape; empty while unmade
    manifest: Mapping[str, Any]
    plan: Plan | None
    curve: Curve | None
    evaluation: Mapping[str, Any]  # loss, accuracy, chance, tokens_per_second, machine, losses

    @property
    def options(self) -> Mapping[str, Any]:
        return self.manifest.get("options") or {}

    @property
    def parameters(self) -> int | None:
        return self.facts.get("parameters")

    @property
    def loss(self) -> float | None:
        return self.evaluation.get("loss")

    @property
    def tokens(self) -> int | None:
        return self._spent("tokens")

    @property
    def flops(self) -> float | None:
        return self._spent("flops")

    def _spent(self, what: str) -> Any:
        training = self.manifest.get("training")
        if training:
            return training[what]
        if self.curve is not None and len(self.curve.logged.get(what, ())):
            return self.curve.logged[what][-1].item()
        return None


@dataclass(frozen=True, slots=True)
class ScoresFile:
    """Importance scores of one model, and whatever else the file carries."""

    name: str
    path: Path
    scores: Scores
    raw: Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Results:
    """A results file of `eval` or `bench`."""

    name: str
    path: Path
    content: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Run:
    """A run directory as far as it has come. `coming` are the steps of its recipe that have not begun; `problems` are
    files that could not be read, in words."""

    title: str
    about: str
    directory: Path
    finished: bool
    steps: tuple[Step, ...]
    models: tuple[Model, ...]
    scores: tuple[ScoresFile, ...]
    evaluations: tuple[Results, ...]
    benchmarks: tuple[Results, ...]
    versions: Mapping[str, Mapping[str, str]]  # package -> version -> what it made
    problems: tuple[str, ...]
    coming: tuple[Step, ...] = ()

    def model(self, name: str | None) -> Model | None:
        return next((m for m in self.models if m.name == name), None)

    @property
    def reference(self) -> Model | None:
        """The largest model of the run: shares are taken of it."""
        known = [m for m in self.models if m.parameters]
        return max(known, key=lambda m: m.parameters or 0) if known else None
