"""`minitron eval`: tasks and perplexity, several models side by side."""

from collections.abc import Mapping
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
)
from minitron_cli.errors import MinitronError

if TYPE_CHECKING:
    from minitron_cli.evaluate.options import Options
    from minitron_cli.evaluate.request import EvalRequest, Evaluation

NAME = "eval"
EXAMPLES = examples(
    "minitron eval world/teacher runs/small --tasks toy --include world/tasks --data world/corpus/valid.jsonl",
    'minitron eval meta-llama/Llama-3.1-8B runs/4b --suite minitron --assert "winogrande.acc >= 0.95 * reference"',
)
PANELS = {
    "Tasks": (
        "shots",
        "limit",
        "batch_size",
        "unsafe",
        "reuse",
    ),
    "Text": (
        "seq_len",
        "windows",
        "separator",
        "text_field",
        "against_reference",
    ),
    "Machine": (
        "dtype",
        "trust_remote_code",
        "throughput",
    ),
}


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
    from minitron_cli.evaluate.cache import default_cache
    from minitron_cli.evaluate.request import EvalRequest, evaluate, options_of

    if form not in _FORMS:
        raise MinitronError(f"no format {form!r}", f"known: {', '.join(_FORMS)}")
    request = EvalRequest(
        models=tuple(models or [require_model(None, NAME)]), suite=suite, tasks=tasks, include=tuple(include or ()),
        data=tuple(data or ()), shots=shots, limit=limit, seq_len=seq_len, windows=windows, separator=separator,
        text_field=text_field, against_reference=against_reference, gates=tuple(gates or ()), batch_size=batch_size,
        device=device, dtype=dtype, confirm_run_unsafe_code=unsafe, trust_remote_code=trust_remote_code,
        throughput=throughput, reuse=reuse, output=output,
    )  # fmt: skip
    if dry_run:
        _plan(request, options_of(request), as_json)
        return
    left = f"finished rows are kept in {default_cache()}, and the same line continues from there"
    with interruptible(left if reuse else "nothing is kept (--no-reuse)"):
        found = evaluate(request, say)
    emit(found.results, as_json, lambda: _show(found.results, form, output))
    _judge(found)


_FORMS = ("table", "markdown", "csv")


def _plan(request: "EvalRequest", options: "Options", as_json: bool) -> None:
    from dataclasses import asdict

    plan = {
        "models": list(request.models), "requests": [asdict(each) for each in options.requests],
        "data": list(request.data), "settings": request.settings,
    }  # fmt: skip

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
                for r in options.requests
            ],
        )
        counts = f"{len(options.requests)} tasks and {len(request.data)} texts on {len(request.models)} models"
        print(f"{counts}: {', '.join(request.models)}")

    emit(plan, as_json, show)


def _judge(found: "Evaluation") -> None:
    """The exit code says whether all models and all gates are well."""
    if failed := found.failed:
        counts = f"{len(failed)} of {len(found.results['models'])} models failed"
        raise MinitronError(f"{counts}: {'; '.join(failed)}", "see above for the rest")
    broken = [verdict for verdict in found.verdicts if not verdict.passed]
    if broken:
        told = "; ".join(f"{v.model}: {v.gate} (measured {v.value:.6g}, bound {v.bound:.6g})" for v in broken)
        raise MinitronError(f"{len(broken)} of {len(found.verdicts)} gates do not hold: {told}")


def _show(found: Mapping[str, Any], form: str, output: Path | None) -> None:
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
