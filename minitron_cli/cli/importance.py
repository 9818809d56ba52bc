"""`minitron importance`: score every axis of a model on calibration data."""

from pathlib import Path
from typing import Annotated, Any

from minitron_cli.cli.common import (
    argument,
    command_line,
    emit,
    examples,
    interruptible,
    option,
    parse_bytes,
    parse_count,
    require_model,
    say,
    table,
)
from minitron_cli.errors import MinitronError

NAME = "importance"
EXAMPLES = examples(
    "minitron importance Llama-3.1-8B --data wikitext:wikitext-2-raw-v1:train -o scores.safetensors",
    "minitron importance runs/small --data stories.jsonl --separator bos --seq-len 128 --depth-block 1 --depth-block 2",
)
PANELS = {
    "Scores": (
        "batch_agg",
        "seq_agg",
        "metric",
        "layer_score",
        "expert_score",
        "expert_damage",
        "seed",
        "padded",
        "allow_fewer",
    ),
    "Depth": (
        "depth_block",
        "depth_metric",
        "depth_task",
        "include",
        "task_limit",
        "depth_greedy",
        "depth_samples",
    ),
    "Machine": (
        "batch_size",
        "dequantize",
        "dtype",
        "device_map",
        "mode",
        "memory",
        "trust_remote_code",
    ),
    "Text": (
        "separator",
        "text_field",
    ),
}


def command(
    model: Annotated[str | None, argument("MODEL", help="a model directory or a hub id")] = None,
    data: Annotated[list[str] | None, option("--data", help="calibration text, SOURCE[:WEIGHT]; repeatable")] = None,
    output: Annotated[Path | None, option("-o", "--output", help="scores [default: MODEL.scores.safetensors]")] = None,
    samples: Annotated[int, option("--samples", help="calibration samples", parser=parse_count)] = 1024,
    seq_len: Annotated[int | None, option("--seq-len", help="tokens a sample [default: context, up to 4096]")] = None,
    batch_size: Annotated[int | None, option("--batch-size", help="samples at a time; changes no score")] = None,
    batch_agg: Annotated[str, option("--batch-agg", help="over samples: mean, l2 or var")] = "l2",
    seq_agg: Annotated[str, option("--seq-agg", help="over a sample's tokens: mean (of |x|), l2 or var")] = "mean",
    metric: Annotated[str, option("--metric", help="activation, wanda, magnitude or random")] = "activation",
    seed: Annotated[int, option("--seed", help="draws the samples (and the random metric)")] = 0,
    depth_block: Annotated[list[int] | None, option("--depth-block", help="drop each block of N layers")] = None,
    depth_metric: Annotated[str, option("--depth-metric", help="of a dropped block: loss, kl or mse")] = "loss",
    depth_task: Annotated[str | None, option("--depth-task", help="judge blocks by this lm-eval task instead")] = None,
    include: Annotated[list[Path] | None, option("--include", help="directory of your own task YAMLs")] = None,
    task_limit: Annotated[int | None, option("--task-limit", help="documents of the task", min=1)] = None,
    depth_greedy: Annotated[int, option("--depth-greedy", help="drop N layers one by one, measuring anew")] = 0,
    depth_samples: Annotated[int, option("--depth-samples", help="samples of those for the depth sweeps")] = 256,
    layer_score: Annotated[str, option("--layer-score", help="influence, norm-ratio, loss, kl or mse")] = "influence",
    expert_score: Annotated[
        str, option("--expert-score", help="activation, frequency, mass, reap, output-norm or damage")
    ] = "activation",
    expert_damage: Annotated[bool, option("--expert-damage", help="measure what dropping each expert changes")] = False,
    second_moments: Annotated[bool, option("--second-moments", help="E[x x^T], for prune --compensate")] = False,
    dequantize: Annotated[bool, option("--dequantize", help="take a model with FP8 or MXFP4 weights")] = False,
    dtype: Annotated[str, option("--dtype", help="auto, float32, bfloat16 or float16")] = "auto",
    device: Annotated[str, option("--device", help="auto, cpu, cuda or cuda:N")] = "auto",
    device_map: Annotated[str | None, option("--device-map", help="auto: let accelerate place the model")] = None,
    mode: Annotated[str, option("--mode", help="auto, resident, or stream: one layer at a time")] = "auto",
    memory: Annotated[int | None, option("--memory", help="what it may use: 16GB", parser=parse_bytes)] = None,
    separator: Annotated[str, option("--separator", help="between documents: auto, bos, eos, bos+eos, none")] = "auto",
    text_field: Annotated[str | None, option("--text-field", help="column that holds the text")] = None,
    allow_fewer: Annotated[bool, option("--allow-fewer", help="go on with fewer samples than asked for")] = False,
    padded: Annotated[bool, option("--padded", help="one document a sample, padded and masked, not packed")] = False,
    trust_remote_code: Annotated[bool, option("--trust-remote-code", help="run code that comes with a model")] = False,
    force: Annotated[bool, option("--force", help="measure again and replace scores made otherwise")] = False,
    dry_run: Annotated[bool, option("--dry-run", help="only say what would be done")] = False,
    as_json: Annotated[bool, option("--json", help="one JSON object on stdout")] = False,
) -> None:
    """Score hidden channels, neurons, heads, layers and experts in one forward-only pass over calibration samples."""
    from minitron_cli.checkpoint.reader import resolve_model
    from minitron_cli.importance.options import Options
    from minitron_cli.importance.run import measure as run

    path = resolve_model(require_model(model, NAME))
    output = output or Path(f"{path.resolve().name}.scores.safetensors")
    options = Options(
        data=tuple(data or ()), samples=samples, seq_len=seq_len, batch_size=batch_size, batch_agg=batch_agg,
        seq_agg=seq_agg, metric=metric, seed=seed, dtype=dtype, device=device, separator=separator,
        text_field=text_field, allow_fewer=allow_fewer, padded=padded, force=force, mode=mode, device_map=device_map,
        memory=memory, depth_blocks=tuple(depth_block or ()), depth_metric=depth_metric, depth_task=depth_task,
        depth_greedy=depth_greedy, depth_samples=depth_samples, layer_score=layer_score,
        trust_remote_code=trust_remote_code, second_moments=second_moments, expert_score=expert_score,
        expert_damage=expert_damage, dequantize=dequantize,
    )  # fmt: skip
    if not depth_task and (include or task_limit is not None):
        raise MinitronError("--include and --task-limit say how --depth-task is run", "add --depth-task TASK")
    if dry_run:
        return _dry_run(path, options, output, as_json)
    judge = _judge(path, depth_task, include or [], task_limit) if depth_task else None
    with interruptible("the same line goes on from what is done, up to the last minute"):
        result = run(path, options, output, say=say, show=_Progress(), judge=judge)
    if _is_main_process():
        facts = _facts(result)
        emit(facts, as_json, lambda: _show(facts, path))


def measure(
    model: str, data: list[str], output: Path, *, samples: int = 1024, seq_len: int | None = None,
    second_moments: bool = False, dequantize: bool = False,
) -> None:  # fmt: skip
    """Measure with defaults, for verbs that need scores and were given data instead."""
    from minitron_cli.importance.options import Options
    from minitron_cli.importance.run import measure as run

    options = Options(
        data=tuple(data), samples=samples, seq_len=seq_len, second_moments=second_moments, dequantize=dequantize
    )
    run(model, options, output, say=say, show=_Progress())


def _judge(model: Path, task: str, include: list[Path], limit: int | None) -> Any:
    """A task of the harness as `importance` wants it: a number for a model in memory. The verbs meet only here."""
    from transformers import AutoTokenizer

    from minitron_cli.evaluate.harness import make_lm, run_request
    from minitron_cli.evaluate.model import LoadedModel
    from minitron_cli.evaluate.options import Request
    from minitron_cli.evaluate.tasks import find_tasks
    from minitron_cli.importance.curves import Judge

    tasks = find_tasks([task], include)
    tokenizer = AutoTokenizer.from_pretrained(model)
    request = Request(task, limit=limit)

    def score(loaded: Any, device: Any) -> float:
        ready = LoadedModel(model.name, model, loaded, tokenizer, device, str(loaded.dtype).removeprefix("torch."))
        first = run_request(make_lm(ready), tasks, request)[0]
        return first.value if first.higher_is_better else -first.value

    return Judge(task, f"{tasks.identity(task)} limit {limit}", score)


class _Progress:
    """A line every few seconds on stderr: how far, how fast, and the time left."""

    def __init__(self) -> None:
        import time

        self._now = time.monotonic
        self._began = self._shown = time.monotonic()

    def __call__(self, fraction: float, rate: float) -> None:
        now = self._now()
        if now - self._shown >= 5.0 and fraction > 0:
            self._shown = now
            left = (now - self._began) / fraction * (1 - fraction)
            say(f"{fraction:6.1%}" + (f"  {rate:,.0f} tokens/s" if rate else "") + f"  {left:,.0f} s left")


def _is_main_process() -> bool:
    import os

    return os.environ.get("RANK", "0") == "0"


def _dry_run(model: Path, options: Any, output: Path, as_json: bool) -> None:
    """What would be measured, from config and headers alone."""
    from minitron_cli.checkpoint.reader import open_checkpoint
    from minitron_cli.importance.forecast import forecast
    from minitron_cli.importance.run import check_request

    source = open_checkpoint(model, options.dequantized_to)
    check_request(source, options, output)
    facts = forecast(source, options) | {"output": str(output), "exists": output.exists()}

    def show() -> None:
        table(["", ""], [[name.replace("_", " "), f"{value:,}" if isinstance(value, int) else str(value)]
                         for name, value in facts.items()])  # fmt: skip
        print(f"would write {output}" + " (there already: it is checked, and kept if it fits)" * output.exists())

    emit(facts, as_json, show)


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
