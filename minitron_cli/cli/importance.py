"""`minitron importance`: score every axis of a model on calibration data."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from minitron_cli.cli.common import (
    bytes_text,
    command_line,
    emit,
    examples,
    interruptible,
    is_first_process,
    parse_bytes,
    require_model,
    say,
    table,
)
from minitron_cli.cli.parameters import (
    AS_JSON,
    DRY_RUN,
    command_of,
    counted,
    defaults_of,
    flag,
    joined,
    model,
    names,
    typed,
)
from minitron_cli.errors import MinitronError
from minitron_cli.pace import Pace

NAME = "importance"
EXAMPLES = examples(
    "minitron importance Llama-3.1-8B --data wikitext:wikitext-2-raw-v1:train -o scores.safetensors",
    "minitron importance runs/small --data stories.jsonl --separator bos --seq-len 128 --depth-block 1 --depth-block 2",
)
_FIRST = (
    model(),
    flag("data", list[str], "calibration text, SOURCE[:WEIGHT]; repeatable"),
    flag("output", Path, "scores [default: MODEL.scores.safetensors]", "-o", "--output"),
    counted("samples", "calibration samples"),
    flag("seq_len", int, "tokens per sample [default: the context, at most 4096]"),
    flag("second_moments", bool, "also E[x x^T] of every input, for prune --compensate"),
    flag("device", str, "auto, cpu, cuda or cuda:N"),
    flag("force", bool, "replace scores that were measured with other settings"),
    DRY_RUN,
    AS_JSON,
)
_MORE = {
    "Scores": (
        flag("batch_agg", str, "aggregate over samples: mean, l2 or var"),
        flag("seq_agg", str, "aggregate over a sample's tokens: mean (of |x|), l2 or var"),
        flag("metric", str, "what ranks units: activation, wanda, magnitude or random"),
        flag("layer_score", str, "what ranks layers: influence, norm-ratio, loss, kl or mse"),
        flag("expert_score", str, "what ranks experts: activation, frequency, mass, reap, output-norm or damage"),
        flag("expert_damage", bool, "also measure how much dropping each expert changes"),
        flag("seed", int, "seed of the samples (and of the random metric)"),
        flag("padded", bool, "one padded document per sample, instead of packed text"),
        flag("allow_fewer", bool, "accept fewer samples than asked for"),
    ),
    "Depth": (
        flag("depth_blocks", list[int], "measure the loss without each block of N layers; repeatable", "--depth-block"),
        flag("depth_metric", str, "what a dropped block costs: loss, kl or mse"),
        flag("depth_task", str, "measure the score on this lm-eval task instead"),
        flag("include", list[Path], "--depth-task: directory of task YAMLs of your own"),
        flag("task_limit", int, "--depth-task: documents of the task", min=1),
        flag("depth_greedy", int, "drop N layers one at a time, each time the least harmful"),
        flag("depth_samples", int, "samples that these measurements use"),
    ),
    "Machine": (
        flag("batch_size", int, "samples per forward pass; does not change the scores"),
        flag("dequantize", bool, "accept a model with FP8 or MXFP4 weights"),
        flag("dtype", str, "auto, float32, bfloat16 or float16"),
        flag("device_map", str, "auto: let accelerate place the model"),
        flag("mode", str, "auto, resident, or stream: one layer at a time"),
        flag("memory", int, "memory limit: 16GB", parser=parse_bytes),
        flag("trust_remote_code", bool, "run code that comes with a model"),
    ),
    "Text": (
        flag("separator", str, "between documents: auto, bos, eos, bos+eos, none"),
        flag("text_field", str, "column that holds the text"),
    ),
}


def _act(given: Mapping[str, Any]) -> None:
    from minitron_cli.chain.grading import judge_of
    from minitron_cli.checkpoint.reader import resolve_model
    from minitron_cli.importance.options import Options
    from minitron_cli.importance.run import measure as run

    path = resolve_model(require_model(given["model"], NAME))
    output = given["output"] or Path(f"{path.resolve().name}.scores.safetensors")
    options = Options(**typed(given, "model", "output", "include", "task_limit", "dry_run", "as_json"))
    include, limit, as_json = given["include"] or [], given["task_limit"], given["as_json"]
    if not options.depth_task and (include or limit is not None):
        raise MinitronError("--include and --task-limit say how --depth-task is run", "add --depth-task TASK")
    if given["dry_run"]:
        _dry_run(path, options, output, as_json)
        judge_of(path, options, include, limit)
        return
    judge = judge_of(path, options, include, limit)

    with interruptible("the same line goes on from what is done, up to the last minute"):
        result = run(path, options, output, say=say, show=_progress(), judge=judge)
    if is_first_process():
        facts = _facts(result)
        emit(facts, as_json, lambda: _show(facts, path))


PANELS = names(_MORE)
command = command_of(
    joined(_FIRST, _MORE),
    "Score what matters in a model, by forward passes alone. Hidden channels, neurons, heads, layers and experts "
    "are scored in one pass over calibration samples.",
    _act,
)


def defaults() -> dict[str, Any]:
    from minitron_cli.importance.options import Options

    return defaults_of(Options)


def measure(model: str, output: Path, **options: Any) -> None:
    """Measure with these options and else defaults, for verbs that need scores and were given data instead."""
    from minitron_cli.importance.options import Options
    from minitron_cli.importance.run import measure as run

    run(model, Options(**options), output, say=say, show=_progress())


def _progress() -> Callable[[float, float], None]:
    """A line every few seconds on stderr: how far, how fast, and the time left."""
    pace = Pace()

    def show(fraction: float, rate: float) -> None:
        if fraction > 0 and pace.due():
            speed = f"  {rate:,.0f} tokens/s" if rate else ""
            say(f"{fraction:6.1%}{speed}  {pace.left(fraction, 1)}")

    return show


def _dry_run(model: Path, options: Any, output: Path, as_json: bool) -> None:
    """What would be measured; then the samples are drawn, and the way to run the pass is chosen."""
    from minitron_cli.checkpoint.reader import open_checkpoint
    from minitron_cli.importance.forecast import forecast
    from minitron_cli.importance.run import check_request, rehearse

    source = open_checkpoint(model, options.dequantized_to)
    check_request(source, options, output)
    facts = forecast(source, options) | {"output": str(output), "exists": output.exists()}

    def show() -> None:
        table(["model", str(model)], _plan_rows(facts))
        print(f"would write {output}" + " (there already: it is checked, and kept if it fits)" * output.exists())

    emit(facts, as_json, show)
    rehearse(source, options, output)


def _plan_rows(facts: Mapping[str, Any]) -> list[list[str]]:
    """What a dry run says, one row each, with units; a word for every key of `forecast` that needs one."""
    words = {
        "seq_len": "tokens a sample",
        "flops": "FLOPs",
        "weight_bytes": "weights on disk",
        "memory_dtype": "computed in",
        "resident_memory": "memory, whole model",
        "streamed_memory": "memory, layer by layer",
        "states_bytes": "hidden states, layer by layer",
        "second_moments_bytes": "Gram matrices on disk",
        "depth_passes": "passes for depth",
        "depth_samples": "samples of those",
    }
    unsaid = {"model", "exists"} | {key for key in facts if key.startswith("depth") and not facts[key]}
    return [
        [
            words.get(name, name),
            bytes_text(value) if name.endswith(("_bytes", "_memory"))
            else f"{value:.3g}" if name == "flops"
            else f"{value:,}" if type(value) is int
            else str(value),
        ]
        for name, value in facts.items()
        if name not in unsaid
    ]  # fmt: skip


def _facts(result: Any) -> dict[str, Any]:
    return {
        "output": str(result.output),
        "made": result.made,
        "seconds": round(result.seconds, 3),
        "axes": {axis: list(array.shape) for axis, array in result.scores.values.items()},
        **{key: value for key, value in result.scores.provenance.items() if key != "rows"},
    }


def _show(facts: dict[str, Any], model: Path) -> None:
    stable = facts.get("stability", {})
    rows = []
    for axis, shape in facts["axes"].items():
        found = stable.get(axis)
        agreement = ["", "", ""]
        if found:
            agreement = [f"{found['spearman']:.3f}", f"{found['worst']:.3f}", f"{found['overlap']['0.5']:.1%}"]
        rows.append([axis, " x ".join(map(str, shape)), *agreement])
    table(["axis", "scores", "halves: Spearman", "worst layer", "same kept of half"], rows)
    for name, fact in facts.get("depth", {}).items():
        if "order" in fact:
            print(f"depth {name}: drop {', '.join(map(str, fact['order']))} in this order")
        else:
            print(f"depth {name}: least harm by dropping {fact['best']['layers']}: "
                  f"{fact['full']:.4f} -> {fact['best']['value']:.4f}")  # fmt: skip
    for layer, experts in facts.get("unrouted", {}).items():
        lost = ", ".join(map(str, experts))
        say(f"warning: layer {layer}: no token was routed to experts {lost}; they and their neurons score 0")
    print(f"{facts['output']}: {facts['made']} in {facts['seconds']:.1f} s")
    line = command_line("prune", model, "--target", "width", "--scores", facts["output"], "--hidden", "N", "--ffn", "M")
    print(f"next: {line} -o OUT")
