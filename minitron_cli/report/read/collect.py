"""Find out what a directory is and read all that it holds. An unfinished run is read as far as it has come."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from minitron_cli.checkpoint.atomic import MANIFEST
from minitron_cli.checkpoint.scores_file import read_scores
from minitron_cli.errors import MinitronError
from minitron_cli.report.read.documents import (
    read_bench,
    read_evaluation,
    read_family,
    read_json,
    read_recipe,
    read_steps,
    steps_to_come,
)
from minitron_cli.report.read.models import bare_model, place, read_into, recorded_digest, single_model
from minitron_cli.report.read.values import Model, Results, Run, ScoresFile, Step
from minitron_cli.spec.recipe import FAMILY, MAKES_MODELS, STATE, VERBS

BENCH = "bench"  # the kind that its results say they are; an evaluation's say none
T = TypeVar("T")


def _attempt(problems: list[str], read: Callable[..., T], *arguments: Any) -> T | None:
    """The result of `read`, or None after noting the problem, which the page names while it shows the rest."""
    try:
        return read(*arguments)
    except MinitronError as error:
        problems.append(error.message)
    except OSError as error:  # a step that is running may move its files
        problems.append(f"{error.filename} could not be read: {error.strerror}")
    return None


def collect(directory: Path, results: Sequence[Path] = ()) -> Run:
    """Read a run directory of `minitron run`, or the output directory of one training run.

    `results` are files of `eval -o` and `bench -o` that are no steps of the run.
    """
    given = [Results(file.stem, file, _content(file)) for file in results]
    if (directory / STATE).is_file() or (directory / FAMILY).is_file():
        return _collect_chain(directory, given)
    if (directory / "run" / "options.json").is_file() or _is_model(directory):
        return _collect_single(directory, given)
    if not directory.is_dir():
        raise MinitronError(
            f"there is no directory {directory}", "give the run directory of `minitron run` (runs/NAME)"
        )
    raise MinitronError(
        f"{directory} is not a run: it holds neither {STATE} nor {FAMILY} nor a model that minitron made",
        "give the directory that `minitron run` or `minitron distill -o` wrote, e.g. `minitron report runs/tiny`",
    )


def _is_model(directory: Path) -> bool:
    """Whether minitron made a model here, and not a token file or a search."""
    return (directory / MANIFEST).is_file() and (directory / "config.json").is_file()


def _content(file: Path) -> dict[str, Any]:
    """The results in a file that was named, of an evaluation or a bench."""
    if not file.is_file():
        raise MinitronError(f"there is no file {file}", "give what `minitron eval -o` or `minitron bench -o` wrote")
    return read_bench(file) if read_json(file).get("kind") == BENCH else read_evaluation(file)


def _of_kind(given: Sequence[Results], bench: bool) -> tuple[Results, ...]:
    return tuple(results for results in given if (results.content.get("kind") == BENCH) == bench)


def _collect_chain(directory: Path, given: Sequence[Results]) -> Run:
    problems: list[str] = []
    family = read_family(directory / FAMILY)
    steps = read_steps(directory, family)
    recipe = _attempt(problems, read_recipe, directory) or {}
    coming = steps_to_come(directory, recipe, steps)
    outputs = {_typed_output(step): step.name for step in steps}
    evaluations = (*_results(steps, "eval", read_evaluation, problems), *_of_kind(given, bench=False))
    makers = [s for s in steps if s.verb in MAKES_MODELS]
    sources = _sources({s.command[1] for s in makers} - outputs.keys(), evaluations)
    named = outputs | {path: model.name for path, model in sources.items()}
    models = [bare_model(s, named, _known(family, s)) for s in makers]
    models = [replace(model, **(_attempt(problems, read_into, model) or {})) for model in models]
    models = [_with_evaluation(model, evaluations, outputs, problems) for model in models]
    models = [*sources.values(), *models]
    return Run(
        title=family.get("recipe") or recipe.get("recipe") or directory.resolve().name,
        about=family.get("about") or recipe.get("about", ""),
        directory=directory,
        finished=bool(family) and not coming and all(step.state == "done" for step in steps),
        steps=steps,
        models=tuple(_with_size(model, models) for model in models),
        scores=_scores(steps, problems),
        evaluations=evaluations,
        benchmarks=(*_results(steps, "bench", read_bench, problems), *_of_kind(given, bench=True)),
        versions=_versions(family, models),
        problems=tuple(problems),
        coming=coming,
    )


def _sources(paths: Collection[str], evaluations: Sequence[Results]) -> dict[str, Model]:
    """The models that the run began from, by path as typed, where an evaluation measured them."""
    found = {}
    for results in evaluations:
        for entry in results.content.get("models", ()):
            if entry["path"] in paths and entry.get("parameters"):
                found[entry["path"]] = _measured(_source(entry["name"]), entry)
    return found


def _source(name: str) -> Model:
    return bare_model(Step(name, "root", ("root", ""), Path(name), "elsewhere", None, {}, {}), {}, {})


def _measured(model: Model, entry: Mapping[str, Any]) -> Model:
    """A model that is elsewhere, with what an evaluation says of it."""
    figures = {key: value for key, value in entry.items() if value is not None and key != "path"}
    facts = {"parameters": entry["parameters"]} if entry.get("parameters") else {}
    return replace(model, parent=model.parent or None, facts={**facts, **model.facts}, evaluation=figures)


def _known(family: Mapping[str, Any], step: Step) -> dict[str, Any]:
    """What family.json says of a model; nothing while the model is made anew."""
    models = family.get("models", ()) if step.state == "done" else ()
    return next((m for m in models if m["name"] == step.name), {})


def _collect_single(directory: Path, given: Sequence[Results]) -> Run:
    model, ancestors = single_model(directory)
    evaluations, problems = _of_kind(given, bench=False), list[str]()
    here = directory.resolve()
    paths = [entry["path"] for results in evaluations for entry in results.content.get("models", ())]
    outputs = {path: model.name for path in paths if Path(path).resolve() == here}
    model = _with_evaluation(model, evaluations, outputs, problems)
    entries = {Path(e["path"]).name: e for results in evaluations for e in results.content.get("models", ())}
    ancestors = tuple(_measured(a, entries[a.name]) if a.name in entries else a for a in ancestors)
    return Run(
        title=model.name,
        about=f"one output of minitron {model.verb}",
        directory=directory,
        finished=model.state == "done",
        steps=(),
        models=(*ancestors, model),
        scores=(),
        evaluations=evaluations,
        benchmarks=_of_kind(given, bench=True),
        versions=_versions({}, [model]),
        problems=tuple(problems),
    )


def _typed_output(step: Step) -> str:
    """The output as the command line names it: by this text later commands refer to it."""
    verb = VERBS.get(step.verb)
    return step.command[1] if verb and verb.output_flag is None else step.command[-1]


def _results(
    steps: Sequence[Step], verb: str, read: Callable[[Path], dict[str, Any]], problems: list[str]
) -> tuple[Results, ...]:
    found = []
    for step in steps:
        if step.verb == verb and step.output.is_file():
            content = _attempt(problems, read, step.output)
            if content:
                found.append(Results(step.name, step.output, content))
    return tuple(found)


def _scores(steps: Sequence[Step], problems: list[str]) -> tuple[ScoresFile, ...]:
    found = []
    for step in steps:
        if step.verb == "importance" and step.output.is_file():
            read = _attempt(problems, read_scores, step.output)
            if read is not None:
                found.append(ScoresFile(step.name, step.output, *read))
    return tuple(found)


def _with_size(model: Model, models: Sequence[Model]) -> Model:
    """Training keeps the size of what it starts from, so a model that is still being trained has its parent's."""
    parent = next((m for m in models if m.name == model.parent), None)
    return model if model.facts or parent is None or VERBS[model.verb].cuts else replace(model, facts=parent.facts)


def _with_evaluation(
    model: Model, evaluations: Sequence[Results], outputs: Mapping[str, str], problems: list[str]
) -> Model:
    """The model with what evaluations say of it, later ones over earlier ones.

    Figures that were measured on other weights, before the model was made again, are left out and named.
    """
    digest = recorded_digest(model.manifest)
    figures = dict(model.evaluation)
    for results in evaluations:
        for entry in results.content.get("models", ()):
            if place(entry["path"], outputs) != model.name:
                continue
            if digest and entry.get("digest") not in (None, digest):
                problems.append(f"{results.path.name} was measured on an earlier {model.name}: evaluate again")
            else:
                figures.update({key: value for key, value in entry.items() if value is not None and key != "path"})
    return replace(model, evaluation=figures)


def _versions(family: Mapping[str, Any], models: Sequence[Model]) -> dict[str, dict[str, str]]:
    """package -> version -> who says so: normally one version each."""
    found: dict[str, dict[str, str]] = {}
    sources = [("this run", family.get("versions", {})), *((m.name, m.manifest.get("versions", {})) for m in models)]
    for name, versions in sources:
        for package, version in versions.items():
            known = found.setdefault(package, {})
            known[version] = f"{known[version]}, {name}" if version in known else name
    return found
