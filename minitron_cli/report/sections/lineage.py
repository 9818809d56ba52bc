"""Lineage and commands: what was done to each model's parent, and the settings of a single run."""

from collections.abc import Mapping, Sequence

from minitron_cli.report import text
from minitron_cli.report.read.values import Model, Run
from minitron_cli.report.table import Table
from minitron_cli.spec.recipe import VERBS


def done_by(model: Model) -> str:
    """What the verb has done to the parent, in a word."""
    return VERBS[model.verb].made if model.verb in VERBS else model.verb


def roots(run: Run) -> list[str | None]:
    """Parents from outside the run; None for the models that have none."""
    names = {m.name for m in run.models}
    return list(dict.fromkeys(m.parent for m in run.models if m.parent not in names))


def children(run: Run, parent: str | None) -> list[Model]:
    return [m for m in run.models if m.parent == parent]


def change(model: Model) -> str:
    """What was done to the parent: sizes that changed, or tokens and teachers."""
    parts = []
    if model.plan is not None:
        source, target = model.plan.source, model.plan.target
        parts = [f"{text.axis(a)} {source[a]:,} → {target[a]:,}" for a in source if source[a] != target[a]]
    elif model.verb == "prune":
        parts = [f"{text.axis(axis)} → {size:,}" for axis, size in (model.options.get("target") or {}).items()]
    parts += [f"{text.count(model.tokens)} tokens"] if model.tokens else []
    parts += ["taught by " + " and ".join(model.teachers)] if model.teachers else []
    return ", ".join(parts)


def options_table(model: Model) -> Table | None:
    """The options of a run that is not a chain."""
    rows = [[name, _plain(value)] for name, value in model.options.items() if value not in (None, [], "")]
    return Table(f"Options of minitron {model.verb}", ("option", "value"), rows, numbers_from=9) if rows else None


def versions_table(run: Run) -> Table | None:
    """One version a package; where models were made by different ones, which by which."""
    rows = []
    for package, known in run.versions.items():
        words = [next(iter(known))] if len(known) == 1 else [f"{version} ({who})" for version, who in known.items()]
        rows.append([package, "; ".join(words)])
    return Table("Versions", ("package", "version"), rows, numbers_from=9) if rows else None


def _plain(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(str, value))
    return str(value)
