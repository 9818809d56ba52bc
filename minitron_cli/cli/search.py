"""`minitron search`: which shape under a budget?"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minitron_cli.cli.common import bytes_text, count_text, emit, examples, parse_bytes, require_model, say, table
from minitron_cli.cli.costs import GPU_TFLOPS, GPU_WORDS, MFU, hours_at, hours_text
from minitron_cli.cli.parameters import AS_JSON, command_of, counted, defaults_of, flag, joined, model, names, typed
from minitron_cli.errors import MinitronError
from minitron_cli.spec.axes import COUNTED_AXES

NAME = "search"
EXAMPLES = examples(
    "minitron search Llama-3.1-8B --params 4B --scores scores.safetensors --data tokens/ -o search-4b",
    "minitron search big --params 4B --grid layers=29:32 --grid heads=24,32,48 --ffn-factors 2.5,3,3.5,4 --list",
    "minitron search big --params 4B --grid vocab=32768:131072:16384 --grid layers=24:32:2 --scores s --data tokens/",
    "minitron search big --speedup 1.5 --bench-grid 512x128 --scores scores.safetensors --data tokens/ -o fast",
)
_FIRST = (
    model(),
    counted("params", "budget: total parameters"),
    flag("memory", int, "budget: bytes of weights and KV cache in 16 bits: 16GB", parser=parse_bytes),
    flag("grid", list[str], "AXIS=A,B,C or AXIS=LOW:HIGH[:STEP]; repeatable"),
    flag("scores", Path, "scores of `minitron importance`"),
    flag("data", list[str], "text to distill on, SOURCE[:WEIGHT]"),
    flag("eval_data", list[str], "held-out text [default: --data]"),
    counted("refine_tokens", "tokens to distill each refined shape on; 0: no refinement"),
    flag("output", Path, "directory of the search [default: search-PARAMS]", "-o", "--output"),
    flag("dry_run", bool, "only say what the search would take at most"),
    AS_JSON,
)
_MORE = {
    "Speed": (
        flag("latency", float, "budget: milliseconds until the last token, measured"),
        flag("speedup", float, "budget: measured speed-up over MODEL"),
        flag("bench_grid", str, "prompt x generated tokens to time at [default: 128x128]"),
        flag("bench_batch_sizes", str, "batch sizes to time: 1,8"),
        flag("bench_repeats", int, "timed rounds per shape"),
    ),
    "Shapes": (
        flag("tolerance", str, "how far a shape may be from --params"),
        counted("kv_tokens", "tokens in the cache (context x batch), with --memory"),
        flag("ffn_factors", str, "ffn as multiples of hidden: 2.5,3,4"),
        flag("listing", bool, "only list the shapes and their sizes", "--list"),
    ),
    "Measuring and refining": (
        flag("measure", int, "shapes to cut and measure"),
        flag("refine", int, "measured shapes to distill for a while"),
        flag("eval_windows", int, "held-out windows to measure on"),
        flag("seq_len", int, "tokens per window [default: the context, at most 1024]"),
        flag("batch", int, "sequences per update, when refining"),
        flag("lr", float, "peak learning rate, when refining"),
        flag("seed", int, "seed of the data order, when refining"),
        flag("separator", str, "between documents: auto, bos, eos, bos+eos, none"),
        flag("text_field", str, "the column that holds the text"),
    ),
    "Machine": (
        flag("device", str, "auto, cpu, cuda or cuda:N"),
        flag("devices", str, "refine on several at once: cuda:0,cuda:1 or cpu,cpu [default: all GPUs]"),
        flag("tflops", float, GPU_WORDS[0], "--gpu-tflops", default=GPU_TFLOPS),
        flag("mfu", float, GPU_WORDS[1], default=MFU),
    ),
}


def _act(given: Mapping[str, Any]) -> None:
    from minitron_cli.search.flags import require_ranking, search_request

    control = ("model", "listing", "devices", "tflops", "mfu", "dry_run", "as_json")
    request = search_request(require_model(given["model"], NAME), **typed(given, *control))
    as_json = given["as_json"]
    if given["listing"]:
        if request.speed is not None and request.speed.binds:
            raise MinitronError("--list knows sizes, not speeds", "leave out --latency and --speedup, or --list")
        _list(request, as_json)
        return
    require_ranking(request)  # before torch is imported
    if given["dry_run"]:
        _dry_run(request, given["tflops"], given["mfu"], as_json)
        return

    from minitron_cli.search.execute import search_and_write

    done = search_and_write(request, given["devices"], say)
    emit(done.facts, as_json, lambda: _show(done.facts, done.picture))


PANELS = names(_MORE)
command = command_of(
    joined(_FIRST, _MORE),
    "Rank every shape in a budget by quality. All are forecast, the best are measured, and the best of those are "
    "distilled a little.",
    _act,
)


def defaults() -> dict[str, Any]:
    from minitron_cli.search.flags import search_request

    return defaults_of(search_request)


def _show(found: Mapping[str, Any], picture: Path) -> None:
    timed, counted = any(entry["speed"] for entry in found["candidates"]), found["longer"]
    rows = [
        [f"{i}{' =' if e['tied'] else ''}", e["name"], count_text(e["parameters"]),
         *(_vocabulary(e, counted) if counted else []), f"+{e['forecast']:.3f}",
         _loss(e, "loss"), _loss(e, "refined"), *(_speed(e) if timed else [])]
        for i, e in enumerate(found["candidates"][:20], 1)
    ]  # fmt: skip
    sizes = ["parameters", *(["embeddings", "tokens"] if counted else [])]
    columns = ["rank", "shape", *sizes, "forecast", "after the cut", "after distilling"]
    table([*columns, "to the last token", "speed"] if timed else columns, rows)
    if len(found["candidates"]) > 20:
        say(f"{len(found['candidates']) - 20} more in {found['output']}/search.json")
    say(f"losses are in {found['unit']} of held-out text (the source: {found['source_loss']:.4f}); forecast: how far "
        "above it, by the importance that is kept")  # fmt: skip
    if counted:
        say("embeddings: their share of the parameters; tokens: how many more of them the counted text has")
    say("'=' marks a tie with the best: the paired difference is within two standard errors")
    if timed:
        say(f"timed at {', '.join(found['speed_budget']['cells'])}, beside the source in the same rounds; worst cell")
    print(f"{picture}: loss against parameters" + (" and time" if timed else ""))
    print(f"next: {found['next']}")


def _vocabulary(entry: dict[str, Any], longer: Mapping[str, float]) -> list[str]:
    """The share of the parameters that embeddings are, and by how much the text gets longer in tokens."""
    embeddings = 1 - entry["non_embedding_parameters"] / entry["parameters"]
    (share,) = (longer[str(entry["shape"][axis])] for axis in COUNTED_AXES)
    return [f"{embeddings:.0%}", f"{share:+.1%}"]


def _loss(entry: dict[str, Any], key: str) -> str:
    return f"{entry[key]:.4f} ± {entry[key + '_stderr']:.4f}" if entry[key] is not None else ""


def _speed(entry: dict[str, Any]) -> list[str]:
    if not entry["speed"]:
        return ["", ""]
    seconds, speedups = entry["speed"]["seconds"].values(), entry["speed"]["speedups"].values()
    return [f"{max(seconds) * 1e3:.1f} ms", f"{min(speedups):.2f}x"]


def _list(request: Any, as_json: bool) -> None:
    from minitron_cli.checkpoint.reader import open_checkpoint
    from minitron_cli.search.shapes import enumerate_shapes

    source = open_checkpoint(request.model)
    found = enumerate_shapes(source, request)
    entries: list[dict[str, Any]] = [
        {"name": request.name(c.shape), "shape": dict(c.shape.sizes), "parameters": c.parameters,
         "non_embedding_parameters": c.non_embedding} for c in found
    ]  # fmt: skip
    rows = [[e["name"], f"{e['parameters']:,}", f"{e['non_embedding_parameters']:,}"] for e in entries]
    emit({"candidates": entries}, as_json, lambda: table(["shape", "parameters", "non-embedding"], rows))
    if not as_json:
        print(f"{len(entries)} shapes; next: the same line with --scores and --data instead of --list ranks them")


def _dry_run(request: Any, tflops: float, mfu: float, as_json: bool) -> None:
    from minitron_cli.search.cost import cost

    found = cost(request)
    found |= {"gpu_hours": hours_at(found["flops"], tflops, mfu)}

    def show() -> None:
        rows = [
            ["shapes in the budget", f"{found['shapes']:,}"], ["shapes cut", f"{found['cuts']:,} at the most"],
            ["tokens", count_text(found["tokens"])], ["FLOPs", f"{found['flops']:.1e}"],
            ["GPU hours", f"{hours_text(found['gpu_hours'])} at {mfu:.0%} of {tflops:g} TFLOP/s"],
            ["memory on a device", bytes_text(found["memory_bytes"])], ["disk", bytes_text(found["disk_bytes"])],
        ]  # fmt: skip
        table(["at the most", ""], rows)
        print(f"would write {request.output}")

    emit(found, as_json, show)
