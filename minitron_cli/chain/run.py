"""Walk a recipe's steps: decide for each whether it is done, is resumed or begins, and call its command line."""

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from minitron_cli.chain.actual_cost import Ended, actual_cost, estimate_facts
from minitron_cli.chain.estimate import estimate
from minitron_cli.chain.fingerprint import combine, file_digests, input_digests, signature, step_fingerprint
from minitron_cli.chain.state import Record, load, lock, save, save_recipe
from minitron_cli.chain.summary import known_configs
from minitron_cli.checkpoint.atomic import check_apart
from minitron_cli.checkpoint.disk import check_place
from minitron_cli.errors import MinitronError
from minitron_cli.spec.recipe import Recipe, Step, command_line

Execute = Callable[[Sequence[str]], Ended]
_STOPPED = (130, 143)  # by SIGINT, by SIGTERM


@dataclass(frozen=True, slots=True)
class Decision:
    """What happens to a step: `done`, `resume` (an interrupted one) or `run`, and why."""

    step: Step
    action: str
    reason: str
    fingerprint: str


def plan_run(recipe: Recipe, directory: Path, begin: str | None = None, until: str | None = None) -> list[Decision]:
    """What `run` would do now. Steps after one that will run cannot be judged yet; the reason names it."""
    check_outputs(recipe, directory)
    return [decision for decision, _ in _walk(recipe, directory, load(directory), begin, until)]


def run(
    recipe: Recipe,
    directory: Path,
    execute: Execute,
    say: Callable[[str], None],
    begin: str | None = None,
    until: str | None = None,
) -> list[Decision]:
    """Bring every step's output up to date. `execute` runs one command line and returns how it ended.

    A step that fails stops the chain; the next run resumes it.
    """
    for step in recipe.steps:
        command_line(recipe, step, directory)  # an input that was not given is an error before the first step runs
    estimate(recipe, known_configs(recipe, directory))  # and so is a step that its verb would refuse
    check_outputs(recipe, directory)
    with lock(directory):
        records = load(directory)
        save_recipe(directory, recipe)
        decisions = []
        steps = _walk(recipe, directory, records, begin, until)
        for number, (decision, record) in enumerate(steps, 1):
            decisions.append(decision)
            place = f"[{number}/{_count(recipe, until)}] {decision.step.name}"
            if decision.action == "done":
                say(f"{place}: done")
                continue
            say(f"{place}: {decision.reason}")
            _execute(recipe, decision, record, records, directory, execute)
            say(f"{place}: finished in {record.seconds:.0f} s")
    return decisions


def check_outputs(recipe: Recipe, directory: Path) -> None:
    """Refuse a run directory that is a file, and steps whose outputs overlap what the user gave."""
    if directory.exists() and not directory.is_dir():
        raise MinitronError(f"{directory} cannot be a run directory: it is a file", "choose another one with -o")
    check_place(directory)
    for step in recipe.steps:
        check_apart(directory / step.output, recipe.given.values())


def _count(recipe: Recipe, until: str | None) -> int:
    return next((i for i, s in enumerate(recipe.steps, 1) if s.name == until), len(recipe.steps))


def _execute(
    recipe: Recipe, decision: Decision, record: Record, records: dict[str, Record], directory: Path, execute: Execute
) -> None:
    step, output = decision.step, directory / decision.step.output
    cost = next(c for c in estimate(recipe, known_configs(recipe, directory)) if c.step.name == step.name)
    if decision.action == "run":
        _remove(output)
        record.seconds = 0.0
    record.begun, record.digest, record.signature = decision.fingerprint, "", {}
    record.command = command_line(recipe, step, directory)
    record.forecast, record.took = estimate_facts(cost), {}
    save(directory, records)
    start = time.monotonic()
    ended = execute(record.command)
    record.seconds = round(record.seconds + time.monotonic() - start, 1)
    if ended.code != 0 or not output.exists():
        save(directory, records)
        raise StepFailed(step.name, ended.code)
    record.files, record.signature = file_digests(output), signature(output)
    record.digest = combine(output, record.files)
    record.took = actual_cost(step, output, cost, ended.peak_bytes)
    save(directory, records)


class StepFailed(MinitronError):
    """A step's command failed. That it was stopped by a signal (130, 143) is passed on; any other failure is 1."""

    def __init__(self, name: str, code: int) -> None:
        super().__init__(
            f"step {name!r} ended with exit code {code}", "see above for why; the same line resumes from this step"
        )
        self.exit_code = code if code in _STOPPED else 1


def _walk(
    recipe: Recipe, directory: Path, records: dict[str, Record], begin: str | None, until: str | None
) -> Iterator[tuple[Decision, Record]]:
    """Decide step by step; the caller runs a step before asking for the next, so that digests are up to date."""
    order = [recipe.step(name).name for name in (begin, until) if name is not None]
    names = [step.name for step in recipe.steps]
    if len(order) == 2 and names.index(order[0]) > names.index(order[1]):
        raise MinitronError(
            f"--from {begin} is after --until {until}: nothing would be made", f"the order is {', '.join(names)}"
        )
    forced: set[str] = set()
    waiting: set[str] = set()
    for step in recipe.steps:
        makers = {maker.name for ref in step.needs() if (maker := recipe.maker(ref))}
        if step.name == begin or makers & forced:
            forced.add(step.name)
        record = records.setdefault(step.name, Record())
        decision = _decide(recipe, step, record, records, directory, step.name in forced, waiting)
        yield decision, record
        if not record.finished or record.begun != decision.fingerprint:
            waiting.add(step.name)
        if step.name == until:
            return


def _decide(
    recipe: Recipe,
    step: Step,
    record: Record,
    records: Mapping[str, Record],
    directory: Path,
    forced: bool,
    waiting: set[str],
) -> Decision:
    output = directory / step.output
    if output.exists() and not record.begun:
        raise MinitronError(
            f"{output} exists, and this run did not make it", "move it away, or choose another directory with -o"
        )
    if missing := recipe.missing(step):
        return Decision(step, "run", "needs " + " ".join(f"--set {name}=..." for name in missing), "")
    waiting_for = [maker.name for ref in step.needs() if (maker := recipe.maker(ref)) and maker.name in waiting]
    if waiting_for:
        return Decision(step, "run", f"after {', '.join(dict.fromkeys(waiting_for))}", "")
    made = {name: r.digest for name, r in records.items()}
    fingerprint = step_fingerprint(step, input_digests(recipe, step, made, directory))
    if forced:
        return Decision(step, "run", "asked for by --from", fingerprint)
    if not record.begun:
        return Decision(step, "run", "new", fingerprint)
    if record.begun != fingerprint:
        return Decision(step, "run", "its options, inputs or code changed", fingerprint)
    if not record.finished:
        return Decision(step, "resume", "resumed where it was interrupted", fingerprint)
    if not output.exists():
        return Decision(step, "run", "its output is gone", fingerprint)
    _check_unchanged(step, output, record)
    return Decision(step, "done", "up to date", fingerprint)


def _check_unchanged(step: Step, output: Path, record: Record) -> None:
    """A finished artefact that something else changed is named, never silently used or replaced."""
    if signature(output) == record.signature:
        return
    now = file_digests(output)
    if combine(output, now) == record.digest:
        return
    changed = record.changed(now)
    raise MinitronError(
        f"{output / changed[0] if output.is_dir() else output} changed after step {step.name!r} had finished"
        + (f" (and {', '.join(changed[1:4])}{' ...' * (len(changed) > 4)})" if len(changed) > 1 else ""),
        f"make it again with --from {step.name}, or put the file back",
    )


def _remove(output: Path) -> None:
    if output.is_dir():
        shutil.rmtree(output)
    else:
        output.unlink(missing_ok=True)
