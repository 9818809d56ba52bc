"""`minitron eval`: tasks and perplexity, several models side by side."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from minitron_cli.cli.common import (
    argument,
    emit,
    examples,
    interruptible,
    option,
    require_model,
    say,
    table,
    write_results,
)
from minitron_cli.errors import MinitronError

if TYPE_CHECKING:
    from minitron_cli.evaluate.gates import Gate
    from minitron_cli.evaluate.options import LossOptions, Options, Request

NAME = "eval"
EXAMPLES = examples(
    "minitron eval world/teacher runs/small --tasks toy --include world/tasks --data world/corpus/valid.jsonl",
    'minitron eval meta-llama/Llama-3.1-8B runs/4b --suite minitron --assert "winogrande.acc >= 0.95 * reference"',
)


def command(
    models: Annotated[list[str] | None, argument("MODEL...", help="model directories or hub ids")] = None,
    suite: Annotated[str | None, option("--suite", help="minitron (the paper's table) or quick")] = None,
    tasks: Annotated[str | None, option("--tasks", help="lm-eval tasks or groups: winogrande,toy")] = None,
    include: Annotated[list[Path] | None, option("--include", help="a directory of task YAMLs; repeatable")] = None,
    data: Annotated[list[str] | None, option("--data", help="text to measure perplexity on; repeatable")] = None,
    shots: Annotated[int | None, option("--shots", help="few-shot examples [default: the task's own]", min=0)] = None,
    limit: Annotated[float | None, option("--limit", help="documents per task, or a share below 1")] = None,
    seq_len: Annotated[int | None, option("--seq-len", help="window for --data [default: the context]", min=2)] = None,
    windows: Annotated[
        int | None, option("--windows", help="read only the first windows of each domain", min=1)
    ] = None,
    separator: Annotated[str, option("--separator", help="between documents: auto, bos, eos, bos+eos, none")] = "auto",
    text_field: Annotated[str | None, option("--text-field", help="the field of --data that holds the text")] = None,
    against_reference: Annotated[
        bool, option("--against-reference", help="also KL to the first model, and top-1 agreement with it")
    ] = False,
    gates: Annotated[list[str] | None, option("--assert", help='"winogrande.acc >= 0.95 * reference"')] = None,
    batch_size: Annotated[int | None, option("--batch-size", help="for tasks [default: what fits]", min=1)] = None,
    device: Annotated[str, option("--device", help="auto, cpu, cuda, cuda:1")] = "auto",
    dtype: Annotated[str, option("--dtype", help="auto, float32, bfloat16, float16")] = "auto",
    unsafe: Annotated[
        bool, option("--confirm-run-unsafe-code", help="let tasks run code that the model writes")
    ] = False,
    trust_remote_code: Annotated[bool, option("--trust-remote-code", help="run code of the model directory")] = False,
    throughput: Annotated[bool, option("--throughput/--no-throughput", help="time plain forward passes")] = True,
    reuse: Annotated[bool, option("--reuse/--no-reuse", help="use results that were kept")] = True,
    output: Annotated[Path | None, option("-o", "--output", help="write the results object here")] = None,
    dry_run: Annotated[bool, option("--dry-run", help="only say what would be evaluated")] = False,
    form: Annotated[str, option("--format", help="table, markdown or csv on stdout")] = "table",
    as_json: Annotated[bool, option("--json", help="one JSON object on stdout")] = False,
) -> None:
    """Evaluate models side by side; the first is the reference of every comparison.

    Tasks run in lm-eval. A paired test per task says whether a difference is real. Finished rows are kept, so the same
    line typed again after an interruption goes on. Exits with 1 when a model failed or an --assert does not hold.
    """
    from minitron_cli.checkpoint.atomic import check_file
    from minitron_cli.evaluate.cache import default_cache
    from minitron_cli.evaluate.gates import parse_gate, refuse_models
    from minitron_cli.evaluate.options import Options, distinct_names

    names = models or [require_model(None, NAME)]
    parsed = [parse_gate(gate) for gate in gates or []]
    if form not in _FORMS:
        raise MinitronError(f"no format {form!r}", f"known: {', '.join(_FORMS)}")
    requests = _requests(suite, tasks, shots, limit)
    losses = _losses(data, seq_len, windows, separator, text_field, against_reference)
    if not requests and losses is None:
        raise MinitronError("nothing to evaluate", "give --tasks, --suite or --data; --include DIR for your own tasks")
    if output:
        check_file(output, [*names, *_files(include or [], losses)])
    settings = {"suite": suite, "tasks": tasks, "shots": shots, "limit": limit, "data": data, "dtype": dtype}
    for directory in include or []:
        if not directory.is_dir():
            raise MinitronError(f"--include {directory} is not a directory", "give the directory of the task YAMLs")
    refuse_models(parsed, distinct_names(names))
    if dry_run:
        _plan(names, requests, data or [], settings, as_json)
        return
    options = Options(
        requests=requests, losses=losses, device=device, dtype=dtype, batch_size=batch_size, unsafe_code=unsafe,
        trust_remote_code=trust_remote_code, throughput=throughput, cache=default_cache() if reuse else None,
    )  # fmt: skip
    left = f"finished rows are kept in {options.cache}, and the same line goes on from there"
    with interruptible(left if options.cache else "nothing is kept (--no-reuse)"):
        found = _measure(names, options, parsed, include or [], settings)
    _finish(found, parsed, output, form, as_json)


def _files(include: list[Path], losses: "LossOptions | None") -> list[Path]:
    """Task and data files, and token directories: results may be written beside the former, over none of them."""
    tasks = [file for place in include for file in (place.rglob("*.y*ml") if place.is_dir() else [place])]
    sources = losses.sources if losses else ()
    return tasks + [file for source in sources for file in (*source.files, *filter(None, (source.tokens,)))]


def _measure(
    names: list[str], options: "Options", gates: "list[Gate]", include: list[Path], settings: dict[str, Any]
) -> dict[str, Any]:
    """The results object; torch, transformers and lm-eval are imported from here on."""
    from dataclasses import replace

    from minitron_cli.checkpoint.reader import resolve_model
    from minitron_cli.evaluate.gates import refuse_unknown
    from minitron_cli.evaluate.harness import without_unsafe
    from minitron_cli.evaluate.results import results
    from minitron_cli.evaluate.side_by_side import evaluate, measurable
    from minitron_cli.evaluate.tasks import find_tasks

    tasks = find_tasks([request.task for request in options.requests], include) if options.requests else None
    if tasks and not options.unsafe_code:
        safe = without_unsafe(options.requests, (settings["tasks"] or "").split(","), tasks)
        left_out = [request.task for request in options.requests if request not in safe]
        if left_out:
            say(f"left out, for they run code that the model writes (--confirm-run-unsafe-code): {', '.join(left_out)}")
        options = replace(options, requests=safe)
    if gates:
        refuse_unknown(gates, measurable(options, tasks, resolve_model(names[0])))
    return results(evaluate(names, options, tasks, say), settings)


_FORMS = ("table", "markdown", "csv")


def _plan(
    models: list[str], requests: "tuple[Request, ...]", data: list[str], settings: dict[str, Any], as_json: bool
) -> None:
    from dataclasses import asdict

    plan = {"models": models, "requests": [asdict(request) for request in requests], "data": data, "settings": settings}

    def show() -> None:
        table(
            ["task", "shots", "metrics", "limit"],
            [
                [
                    r.task,
                    "its own" if r.shots is None else str(r.shots),
                    ", ".join(r.metrics) or "all",
                    str(r.limit or ""),
                ]
                for r in requests
            ],
        )
        print(f"{len(requests)} tasks and {len(data)} texts on {len(models)} models: {', '.join(models)}")

    emit(plan, as_json, show)


def _requests(suite: str | None, tasks: str | None, shots: int | None, limit: float | None) -> "tuple[Request, ...]":
    from dataclasses import replace

    from minitron_cli.evaluate import suites
    from minitron_cli.evaluate.options import Request

    chosen = list(suites.suite(suite)) if suite else []
    chosen += [Request(name.strip(), shots) for name in (tasks or "").split(",") if name.strip()]
    return tuple(replace(request, limit=_limit(limit)) if limit is not None else request for request in chosen)


def _limit(limit: float) -> float:
    """The harness takes a count as an int and a share as a float."""
    if not 0 < limit < float("inf"):
        raise MinitronError(f"--limit {limit:g} leaves nothing", "give a count like 100, or a share like 0.1")
    return int(limit) if limit >= 1 else limit


def _losses(
    data: list[str] | None, seq_len: int | None, windows: int | None, separator: str, text_field: str | None,
    against_reference: bool,
) -> "LossOptions | None":  # fmt: skip
    from minitron_cli.data.source import parse_sources
    from minitron_cli.evaluate.options import LossOptions

    if not data:
        return None
    return LossOptions(parse_sources(data), seq_len, windows, separator, text_field, against_reference)


def _finish(found: dict[str, Any], gates: list[Any], output: Path | None, form: str, as_json: bool) -> None:
    """Write and show the results, then judge: the exit code says whether all models and all gates are well."""
    from dataclasses import asdict

    from minitron_cli.evaluate.gates import check
    from minitron_cli.evaluate.results import gate_values

    failed = [model for model in found["models"] if model["error"]]
    values = gate_values(found)
    verdicts = check(gates, values) if gates and found["reference"] in values else []
    found["gates"] = [asdict(verdict) for verdict in verdicts]
    if output:
        write_results(found, output)
    emit(found, as_json, lambda: _show(found, form, output))
    if failed:
        named = "; ".join(f"{model['name']}: {model['error']}" for model in failed)
        raise MinitronError(f"{len(failed)} of {len(found['models'])} models failed: {named}", "see above for the rest")
    broken = [verdict for verdict in verdicts if not verdict.passed]
    if broken:
        told = "; ".join(f"{v.model}: {v.gate} (measured {v.value:.6g}, bound {v.bound:.6g})" for v in broken)
        raise MinitronError(f"{len(broken)} of {len(verdicts)} gates do not hold: {told}")


def _show(found: dict[str, Any], form: str, output: Path | None) -> None:
    from minitron_cli.evaluate import results as shown

    if form == "csv":
        print(shown.to_csv(found), end="")
        return
    if form == "markdown":
        print(shown.markdown(found))
        return
    if found["rows"]:
        table(shown.COLUMNS, shown.task_table(found))
    domains = shown.domain_table(found)
    if len({row[0] for row in domains}) > 1 or any(row[5] for row in domains):
        table(shown.DOMAIN_COLUMNS, domains)
    table(*shown.model_table(found))
    for gate in found["gates"]:
        print(
            f"{'holds' if gate['passed'] else 'FAILS'}  {gate['model']}: {gate['gate']} (measured {gate['value']:.6g})"
        )
    if output:
        print(f"wrote {output}; next: minitron report on the run it belongs to")
