"""The verb: a run directory in, one HTML file out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minitron_cli.checkpoint.atomic import MANIFEST, atomic_file
from minitron_cli.errors import MinitronError
from minitron_cli.report.page import GENERATOR, page
from minitron_cli.report.read.collect import collect
from minitron_cli.report.read.figures import Losses, comparable_losses, descent, spent
from minitron_cli.report.read.values import Model, Run

NAME = "report.html"


def report(
    directory: Path,
    output: Path | None = None,
    dry_run: bool = False,
    gpu_price: float | None = None,
    results: Sequence[Path] = (),
) -> dict[str, Any]:
    """Write the report of `directory` and return what it shows; `dry_run` only returns it. `gpu_price` is that of an
    hour of one device, in any currency; `results` are files of `eval -o` and `bench -o` that are no steps of the run.
    """
    if gpu_price is not None and not 0 <= gpu_price < float("inf"):
        raise MinitronError(f"--gpu-price must be a price; got {gpu_price}", "the price of one GPU for an hour")
    run = collect(directory, results)
    target = output or default_output(directory)
    _check(target)
    facts = {**_facts(run), "output": str(target)}
    if dry_run:
        return facts
    with atomic_file(target) as temporary:
        temporary.write_text(page(run, gpu_price), encoding="utf-8")
    return facts


def default_output(directory: Path) -> Path:
    """In the run directory. A single artefact's content is checked by hash, so its report is never part of it: it goes
    to OUT/run of a training output, which is not part of the model, else beside the artefact.
    """
    if (directory / "run" / "options.json").is_file():
        return directory / "run" / NAME
    if (directory / MANIFEST).is_file():
        artefact = directory.resolve()
        return artefact.with_name(f"{artefact.name}.{NAME}")
    return directory / NAME


def _check(target: Path) -> None:
    """A file is replaced only where it is a report of ours."""
    if target.is_dir():
        raise MinitronError(f"{target} is a directory", f"name a file: -o {target / NAME}")
    if target.is_file() and f'content="{GENERATOR} ' not in target.read_text(encoding="utf-8", errors="replace")[:2000]:
        raise MinitronError(f"{target} exists and is not a report of minitron", "choose another output with -o")


def _facts(run: Run) -> dict[str, Any]:
    """What the page shows, as one JSON object."""
    losses = comparable_losses(run)
    return {
        "run": str(run.directory),
        "title": run.title,
        "finished": run.finished,
        "steps": {step.name: step.state for step in (*run.steps, *run.coming)},
        "models": [_model(model, run, losses) for model in run.models if model.state != "elsewhere"],
        "scores": [file.name for file in run.scores],
        "evaluations": [results.name for results in run.evaluations],
        "benchmarks": [results.name for results in run.benchmarks],
        "problems": list(run.problems),
    }


def _model(model: Model, run: Run, losses: Losses) -> dict[str, Any]:
    loss = losses.values.get(model.name)
    return {
        "name": model.name,
        "verb": model.verb,
        "state": model.state,
        "parent": model.parent,
        "teachers": list(model.teachers),
        "parameters": model.parameters,
        "loss": loss,
        "loss_source": None if loss is None else losses.source,
        "accuracy": model.evaluation.get("accuracy"),
        "chance": model.evaluation.get("chance"),
        "tokens_per_second": model.evaluation.get("tokens_per_second"),
        "tokens": model.tokens,
        "tokens_with_ancestors": spent(descent(model, run), "tokens"),
        "flops": model.flops,
    }
