"""How it was made: the exact command lines, how far they are, and the versions."""

import shlex
from collections.abc import Mapping, Sequence

from minitron_cli.report import text
from minitron_cli.report.html import Html, join, missing, section, table, tag
from minitron_cli.report.read.values import Run, Step


def commands(run: Run) -> Html:
    """Steps in their order, those to come behind them, then versions; where they differ, who has which."""
    steps: object = [_step(i, step) for i, step in enumerate((*run.steps, *run.coming), 1)]
    block = tag("ol", steps, class_="steps") if run.steps else missing("This is no chain: its options stand below.")
    return section(
        "commands", "How it was made", block, _options(run) if not run.steps else None, _versions(run.versions)
    )


def _step(number: int, step: Step) -> Html:
    words = {"begun": "in progress", "to come": "to come"}.get(step.state)
    state = tag("span", words, class_="badge going") if words else None
    took = tag("span", text.duration(step.seconds), class_="quiet") if step.seconds else None
    line = tag("pre", tag("code", "minitron " + shlex.join(step.command)))
    return tag("li", tag("p", tag("strong", step.name), " ", state, " ", took), line)


def _options(run: Run) -> Html | None:
    model = run.models[-1]
    options = model.manifest.get("options") or {}
    rows = [[name, _plain(value)] for name, value in options.items() if value not in (None, [], "")]
    return (
        table(("option", "value"), rows, caption=f"Options of minitron {model.verb}", numbers_from=9) if rows else None
    )


def _plain(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(str, value))
    return str(value)


def _versions(versions: Mapping[str, Mapping[str, str]]) -> Html:
    if not versions:
        return missing("No artefact has said yet by which versions it was made.")
    rows = []
    for package, known in versions.items():
        cell = next(iter(known)) if len(known) == 1 else join([tag("div", f"{v} ({who})") for v, who in known.items()])
        rows.append([package, cell])
    return table(("package", "version"), rows, caption="Versions", numbers_from=9)
