"""The request of an evaluation, its checks and its execution. Importable without torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from minitron_cli.checkpoint.atomic import atomic_file, check_file
from minitron_cli.checkpoint.seal import sealed
from minitron_cli.data.source import held_out_sources
from minitron_cli.errors import MinitronError
from minitron_cli.evaluate.cache import default_cache
from minitron_cli.evaluate.gates import Gate, Verdict, check, parse_gate, refuse_models, refuse_unknown
from minitron_cli.evaluate.options import LossOptions, Options, Request, distinct_names
from minitron_cli.spec.limits import count, require
from minitron_cli.spec.plain import finite, json_text

if TYPE_CHECKING:
    from minitron_cli.evaluate.tasks import Tasks

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalRequest:
    """All options of `minitron eval`. A field is named as its flag, and None where nothing was asked; `gates`
    are those of --assert. The first model is the reference of every comparison.
    """

    models: tuple[str, ...]
    suite: str | None = None
    tasks: str | None = None
    include: tuple[Path, ...] = ()
    data: tuple[str, ...] = ()
    shots: Annotated[int | None, count(0)] = None
    limit: float | None = None
    seq_len: Annotated[int | None, count(2, 2**24)] = None
    windows: Annotated[int | None, count()] = None
    separator: str = "auto"
    text_field: str | None = None
    against_reference: bool = False
    gates: tuple[str, ...] = ()
    batch_size: Annotated[int | None, count()] = None
    device: str = "auto"
    dtype: str = "auto"
    confirm_run_unsafe_code: bool = False
    trust_remote_code: bool = False
    throughput: bool = True
    reuse: bool = True
    output: Path | None = None

    def __post_init__(self) -> None:
        require(self, "eval")

    @property
    def named_tasks(self) -> tuple[str, ...]:
        """The tasks that --tasks lists."""
        return tuple(filter(None, (name.strip() for name in (self.tasks or "").split(","))))

    @property
    def settings(self) -> dict[str, Any]:
        """The options that the results file records."""
        names = ("suite", "tasks", "shots", "limit", "data", "dtype")
        return {name: list(self.data) or None if name == "data" else getattr(self, name) for name in names}


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The results object, as a file holds it, and the verdicts on the gates."""

    results: Mapping[str, Any]
    verdicts: tuple[Verdict, ...]

    @property
    def failed(self) -> list[str]:
        """Models that were not evaluated, or not in full, with the reason."""
        return [f"{model['name']}: {model['error']}" for model in self.results["models"] if model["error"]]


@dataclass(frozen=True, slots=True)
class Prepared:
    """An evaluation that was checked: its options, the tasks that they name, the gates."""

    options: Options
    tasks: Tasks | None
    gates: tuple[Gate, ...]


def options_of(request: EvalRequest) -> Options:
    """The checked options: every task, text and place of the request; nothing is loaded."""
    refuse_models([parse_gate(gate) for gate in request.gates], distinct_names(request.models))
    for directory in request.include:
        if not directory.is_dir():
            raise MinitronError(f"--include {directory} is not a directory", "give the directory of the task YAMLs")
    requests = _requests(request)
    losses = None
    if request.data:
        losses = LossOptions(
            held_out_sources(request.data), request.seq_len, request.windows, request.separator, request.text_field,
            request.against_reference,
        )  # fmt: skip
    if not requests and losses is None:
        raise MinitronError("nothing to evaluate", "give --tasks, --suite or --data; --include DIR for your own tasks")
    if request.output:
        check_file(request.output, [*request.models, *_files(request.include, losses)])
    return Options(
        requests=requests, losses=losses, device=request.device, dtype=request.dtype, batch_size=request.batch_size,
        unsafe_code=request.confirm_run_unsafe_code, trust_remote_code=request.trust_remote_code,
        throughput=request.throughput, cache=default_cache() if request.reuse else None,
    )  # fmt: skip


def evaluate(request: EvalRequest, say: Say = lambda text: None) -> Evaluation:
    """Measure every model and judge the gates; the results are written to `output` where one is given."""
    ready = prepare(request, say)

    from minitron_cli.evaluate.results import gate_values, results
    from minitron_cli.evaluate.side_by_side import evaluate as side_by_side

    found = results(side_by_side(request.models, ready.options, ready.tasks, say), request.settings)
    values = gate_values(found)
    verdicts: list[Verdict] = []
    try:
        if ready.gates and found["reference"] in values:
            verdicts = check(ready.gates, values)
    finally:  # what was measured is kept, even where a gate names a figure that could not be
        found["gates"] = [asdict(verdict) for verdict in verdicts]
        if request.output:
            write_results(found, request.output, say)
    return Evaluation(found, tuple(verdicts))


def rehearse(request: EvalRequest, say: Say = lambda text: None) -> Prepared:
    """All checks of an evaluation that need no weights, of every model: what a dry run does."""
    from minitron_cli.checkpoint.reader import load_config, resolve_model
    from minitron_cli.evaluate.losses import held_out
    from minitron_cli.hf.context import context_length
    from minitron_cli.hf.devices import choose_device, choose_dtype

    ready = prepare(request, say)
    choose_dtype(request.dtype, choose_device(request.device))
    for model, name in zip(request.models, distinct_names(request.models)):
        path = resolve_model(model)
        config = load_config(path)
        if ready.options.losses is not None:
            held_out(ready.options.losses, path, name, context_length(config), config["vocab_size"])
    return ready


def prepare(request: EvalRequest, say: Say) -> Prepared:
    """The checked options, tasks and gates. Where there are tasks, lm-eval is imported from here on."""
    options, tasks = options_of(request), None
    gates = tuple(parse_gate(gate) for gate in request.gates)
    if options.requests:
        from minitron_cli.evaluate.harness import without_unsafe
        from minitron_cli.evaluate.tasks import find_tasks

        tasks = find_tasks([each.task for each in options.requests], list(request.include))
        if not options.unsafe_code:
            safe = without_unsafe(options.requests, request.named_tasks, tasks)
            if left_out := [each.task for each in options.requests if each not in safe]:
                why = "because they run code that the model writes (--confirm-run-unsafe-code)"
                say(f"left out, {why}: {', '.join(left_out)}")
            options = replace(options, requests=safe)
    if gates:
        from minitron_cli.checkpoint.reader import resolve_model
        from minitron_cli.evaluate.side_by_side import measurable

        refuse_unknown(gates, measurable(options, tasks, resolve_model(request.models[0])))
    return Prepared(options, tasks, gates)


def write_results(found: Mapping[str, Any], output: Path, say: Say) -> None:
    """Write a results object as JSON; figures that are not finite become null, and are named."""
    plain, places = finite(found)
    if places:
        more = f" and {len(places) - 3} more" if len(places) > 3 else ""
        say(f"warning: {', '.join(places[:3])}{more} are NaN or infinite: null in {output}")
    with atomic_file(output) as temporary:
        temporary.write_text(json_text(sealed(plain), indent=2) + "\n", encoding="utf-8")


def _requests(request: EvalRequest) -> tuple[Request, ...]:
    from minitron_cli.evaluate import suites

    chosen = list(suites.suite(request.suite)) if request.suite else []
    chosen += [Request(name, request.shots) for name in request.named_tasks]
    if request.limit is None:
        return tuple(chosen)
    if not 0 < request.limit < float("inf"):
        raise MinitronError(f"--limit {request.limit:g} leaves nothing", "give a count like 100, or a share like 0.1")
    # The harness takes a count as an int and a share as a float.
    limit = int(request.limit) if request.limit >= 1 else request.limit
    return tuple(replace(each, limit=limit) for each in chosen)


def _files(include: tuple[Path, ...], losses: LossOptions | None) -> list[Path]:
    """Task and data files, and token directories: results may be written beside the former, over none of them."""
    tasks = [file for place in include for file in (place.rglob("*.y*ml") if place.is_dir() else [place])]
    sources = losses.sources if losses else ()
    return tasks + [file for source in sources for file in (*source.files, *filter(None, (source.tokens,)))]
