"""Evaluate several models on the same rows, one model in memory at a time; the first one is the reference."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from minitron_cli.checkpoint.provenance import model_digest
from minitron_cli.checkpoint.reader import load_config, resolve_model
from minitron_cli.errors import MinitronError
from minitron_cli.evaluate.cache import cached
from minitron_cli.evaluate.harness import Score, make_lm, run_request
from minitron_cli.evaluate.losses import LOSS_FIGURES, REFERENCE_FIGURES, domains, measure_losses
from minitron_cli.evaluate.model import LoadedModel, load_model
from minitron_cli.evaluate.options import Options, Request, distinct_names
from minitron_cli.evaluate.tasks import Tasks
from minitron_cli.evaluate.throughput import forward_rate
from minitron_cli.hf.devices import choose_device, choose_dtype, machine_words

Say = Callable[[str], None]
MODEL_FIGURES = ("parameters", "tokens_per_second")


@dataclass(frozen=True, slots=True)
class Measured:
    """One model's figures; `error` says why it has none (`parameters` is None then) or lacks some."""

    name: str
    path: str
    parameters: int | None
    tokens_per_second: float | None
    machine: str | None  # what it was measured on
    digest: str | None
    losses: Mapping[str, Any]  # domain -> figures, and "all"
    scores: tuple[Score, ...]
    error: str | None = None
    dtype: str | None = None  # the type that it was computed in
    stored_dtype: str | None = None  # the type of its checkpoint, which lm-eval computes in by default


def measurable(options: Options, tasks: Tasks | None, model: Path) -> dict[str, Collection[str] | None]:
    """What an evaluation will measure -> the names of its figures, None where they are known afterwards only.

    `model` is the directory of a model by whose tokenizer the domains of the data are found.
    """
    known: dict[str, Collection[str] | None] = {"model": MODEL_FIGURES}
    if options.losses is not None:
        figures = (*LOSS_FIGURES, *(REFERENCE_FIGURES if options.losses.against_reference else ()))
        known |= dict.fromkeys(domains(options.losses, model), figures)
    for request in options.requests:
        assert tasks is not None, "requests come with their tasks"
        known |= dict.fromkeys(tasks.leaves(request.task))
        known[request.task] = request.metrics or tasks.metrics(request.task)
    return known


def evaluate(models: Sequence[str], options: Options, tasks: Tasks | None, say: Say) -> list[Measured]:
    """Measure every model in turn. One that cannot be loaded or measured is noted, and the others go on."""
    choose_dtype(options.dtype, choose_device(options.device))  # one that is missing is no error of each model
    names = distinct_names(models)
    found = []
    for model, name in zip(models, names):
        try:
            found.append(_measure(model, name, models[0], options, tasks, say))
        except MinitronError as error:
            _tell(name, error, say)
            found.append(Measured(name, model, None, None, None, None, {}, (), error.message))
    return found


def _tell(name: str, error: MinitronError, say: Say) -> None:
    say(f"error: {name}: {error.message}")
    if error.hint:
        say(f"hint: {error.hint}")


def _measure(model: str, name: str, reference: str, options: Options, tasks: Tasks | None, say: Say) -> Measured:
    path = resolve_model(model)
    loaded = load_model(
        path, device=options.device, dtype=options.dtype, name=name, trust_remote_code=options.trust_remote_code
    )
    digest = model_digest(path)
    say(f"{name}: {loaded.num_parameters:,} parameters, {loaded.dtype} on {loaded.device}")
    config = load_config(path)
    stored = config.get("dtype") or config.get("torch_dtype")
    if options.requests and stored and stored != loaded.dtype:
        say(f"note: lm-eval would compute {name} in {stored}, the type of its checkpoint (--dtype {stored})")
    losses: Mapping[str, Any] = {}
    if options.losses is not None:
        losses = measure_losses(loaded, digest, resolve_model(reference), options.losses, options.cache, say)
    scores: list[Score] = []
    failed: list[str] = []
    if options.requests:
        assert tasks is not None, "requests come with their tasks"
        scores, failed = _run_tasks(loaded, digest, options, tasks, say)
    rate = forward_rate(loaded) if options.throughput else None
    error = "; ".join(failed) or None
    machine = f"{machine_words(loaded.device)}, {loaded.dtype}"
    return Measured(
        name, model, loaded.num_parameters, rate, machine, digest, losses, tuple(scores), error, loaded.dtype, stored
    )


def _run_tasks(
    loaded: LoadedModel, digest: str, options: Options, tasks: Tasks, say: Say
) -> tuple[list[Score], list[str]]:
    """Every request in turn: scores, and what failed. Each is kept as it is done, so that an interrupted evaluation
    goes on after it.
    """
    lm: Any = None
    scores: list[Score] = []
    failed: list[str] = []
    for request in options.requests:

        def run(request: Request = request) -> list[dict[str, Any]]:
            nonlocal lm
            lm = lm or make_lm(loaded, options.batch_size)
            return [asdict(score) for score in run_request(lm, tasks, request, unsafe_code=options.unsafe_code)]

        identity = {
            "model": digest,
            "request": asdict(request),
            "task": tasks.identity(request.task),
            "batch_size": options.batch_size,
            **environment(loaded),
        }
        try:
            rows, known = cached(options.cache, identity, run)
        except MinitronError as error:
            _tell(loaded.name, error, say)
            failed.append(error.message)
            continue
        found = [Score(**row) for row in rows]
        scores += found
        shown = ", ".join(f"{score.task} {score.key} {score.value:.4f}" for score in found)
        say(f"{loaded.name}: {shown}{' (kept from before)' if known else ''}")
    return scores, failed


def environment(loaded: LoadedModel) -> dict[str, str]:
    """What else a figure depends on."""
    from importlib.metadata import version

    packages = {name: version(name) for name in ("torch", "transformers", "lm-eval")}
    return {"dtype": loaded.dtype, "device": loaded.device.type, **packages}
