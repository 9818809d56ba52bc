"""`minitron eval`: tasks and perplexity, several models side by side."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minitron_cli.cli.common import emit, examples, interruptible, require_model, say, show_written, table
from minitron_cli.cli.parameters import AS_JSON, MODELS, command_of, defaults_of, flag, joined, names, typed
from minitron_cli.errors import MinitronError

if TYPE_CHECKING:
    from minitron_cli.evaluate.options import Options
    from minitron_cli.evaluate.request import EvalRequest, Evaluation

NAME = "eval"
EXAMPLES = examples(
    "minitron eval world/teacher runs/small --tasks toy --include world/tasks --data world/corpus/valid.jsonl",
    'minitron eval meta-llama/Llama-3.1-8B runs/4b --suite minitron --assert "winogrande.acc >= 0.95 * reference"',
)
_FIRST = (
    MODELS,
    flag("suite", str, "minitron (the paper's table) or quick"),
    flag("tasks", str, "lm-eval tasks or groups: winogrande,toy"),
    flag("include", list[Path], "a directory of task YAMLs; repeatable"),
    flag("data", list[str], "text to measure perplexity on; repeatable"),
    flag("gates", list[str], 'fail unless this holds: "winogrande.acc >= 0.95 * reference"', "--assert"),
    flag("device", str, "auto, cpu, cuda, cuda:1"),
    flag("output", Path, "write the results to this file (JSON)", "-o", "--output"),
    flag("dry_run", bool, "only say what would be evaluated"),
    flag("form", str, "table or markdown on stdout", "--format", default="table"),
    AS_JSON,
)
_MORE = {
    "Tasks": (
        flag("shots", int, "few-shot examples [default: the task's own]"),
        flag("limit", float, "documents per task, or a share below 1"),
        flag("batch_size", int, "batch size on tasks [default: what fits]"),
        flag("confirm_run_unsafe_code", bool, "let tasks run code that the model writes"),
        flag("reuse", bool, "reuse cached results", negatable=True),
    ),
    "Text": (
        flag("seq_len", int, "tokens per window of --data [default: the context]"),
        flag("windows", int, "read only the first windows of each domain"),
        flag("separator", str, "between documents: auto, bos, eos, bos+eos, none"),
        flag("text_field", str, "the field of --data that holds the text"),
        flag("against_reference", bool, "also the KL divergence from the first model and the top-1 agreement with it"),
    ),
    "Machine": (
        flag("dtype", str, "auto, float32, bfloat16, float16"),
        flag("trust_remote_code", bool, "run code of the model directory"),
        flag("throughput", bool, "time plain forward passes", negatable=True),
    ),
}


def _act(given: Mapping[str, Any]) -> None:
    from minitron_cli.evaluate.cache import default_cache
    from minitron_cli.evaluate.request import EvalRequest, evaluate, options_of, rehearse

    form, as_json = given["form"], given["as_json"]
    if form not in _FORMS:
        raise MinitronError(f"no format {form!r}", f"known: {', '.join(_FORMS)}")
    models = tuple(given["models"] or [require_model(None, NAME)])
    request = EvalRequest(models=models, **typed(given, "models", "dry_run", "form", "as_json"))
    if given["dry_run"]:
        _plan(request, options_of(request), as_json)
        rehearse(request, say)
        return
    left = f"finished rows are kept in {default_cache()}, and the same line continues from there"
    with interruptible(left if request.reuse else "nothing is kept (--no-reuse)"):
        found = evaluate(request, say)
    emit(found.results, as_json, lambda: _show(found.results, form, request.output))
    _judge(found)


PANELS = names(_MORE)
command = command_of(
    joined(_FIRST, _MORE),
    """Evaluate models side by side. The first is the reference of every comparison.

    Tasks run in lm-eval. A paired test per task says whether a difference is real. Finished rows are cached, so the
    same command resumes after an interruption. Exits with 1 when a model failed or an --assert does not hold.
    """,
    _act,
)


def defaults() -> dict[str, Any]:
    from minitron_cli.evaluate.request import EvalRequest

    return defaults_of(EvalRequest)


_FORMS = ("table", "markdown")


def _plan(request: "EvalRequest", options: "Options", as_json: bool) -> None:
    from dataclasses import asdict

    plan = {
        "models": list(request.models), "requests": [asdict(each) for each in options.requests],
        "data": list(request.data), "settings": request.settings,
    }  # fmt: skip

    def show() -> None:
        shots = ["its own" if r.shots is None else str(r.shots) for r in options.requests]
        rows = [[r.task, n, ", ".join(r.metrics) or "all", str(r.limit or "")] for r, n in zip(options.requests, shots)]
        if rows:
            table(["task", "shots", "metrics", "limit"], rows)
        for text in request.data:
            print(f"text: {text}")
        print(f"tasks: {len(rows)}; texts: {len(request.data)}; models: {', '.join(request.models)}")

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

    if form == "markdown":
        print(shown.markdown(found))
        return
    if found["rows"]:
        table(shown.COLUMNS, shown.task_table(found))
    domains = shown.domain_table(found)
    if domains[1]:
        table(*domains)
    table(*shown.model_table(found))
    for gate in found["gates"]:
        print(
            f"{'holds' if gate['passed'] else 'FAILS'}  {gate['model']}: {gate['gate']} (measured {gate['value']:.6g})"
        )
    if output:
        show_written(output, [model["path"] for model in found["models"]])
