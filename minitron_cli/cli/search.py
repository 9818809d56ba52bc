"""`minitron search`: which shape under a budget?"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from minitron_cli.cli.common import (
    argument,
    bytes_text,
    count_text,
    emit,
    examples,
    option,
    parse_bytes,
    parse_count,
    require_model,
    say,
    table,
)
from minitron_cli.errors import MinitronError

NAME = "search"
EXAMPLES = examples(
    "minitron search Llama-3.1-8B --params 4B --scores scores.safetensors --data tokens/ -o search-4b",
    "minitron search big --params 4B --grid layers=29:32 --grid heads=24,32,48 --ffn-factors 2.5,3,3.5,4 --list",
    "minitron search big --speedup 1.5 --bench-grid 512x128 --scores scores.safetensors --data tokens/ -o fast",
)
PANELS = {
    "Speed": (
        "latency",
        "speedup",
        "bench_grid",
        "bench_batch_sizes",
        "bench_repeats",
    ),
    "Shapes": (
        "tolerance",
        "kv_tokens",
        "ffn_factors",
        "listing",
    ),
    "Measuring and refining": (
        "measure",
        "refine",
        "eval_windows",
        "seq_len",
        "batch",
        "lr",
        "seed",
        "separator",
        "text_field",
    ),
    "Machine": (
        "device",
        "devices",
        "tflops",
        "mfu",
    ),
}


def command(
    model: Annotated[str | None, argument("MODEL", help="a model directory or a hub id")] = None,
    params: Annotated[int | None, option("--params", help="budget of total parameters", parser=parse_count)] = None,
    tolerance: Annotated[str, option("--tolerance", help="how far from --params a shape may be")] = "5%",
    memory: Annotated[str | None, option("--memory", help="budget of weights and KV cache in 16 bits: 16GB")] = None,
    kv_tokens: Annotated[
        int, option("--kv-tokens", help="tokens in the cache (context x batch), with --memory", parser=parse_count)
    ] = 0,
    latency: Annotated[
        float | None, option("--latency", help="budget of milliseconds to the last token, measured")
    ] = None,
    speedup: Annotated[float | None, option("--speedup", help="how many times as fast as MODEL, measured")] = None,
    bench_grid: Annotated[
        str | None, option("--bench-grid", help="prompt x generated tokens to time at [default: 128x128]")
    ] = None,
    bench_batch_sizes: Annotated[str, option("--bench-batch-sizes", help="sequences at a time when timing: 1,8")] = "1",
    bench_repeats: Annotated[int, option("--bench-repeats", help="timed rounds of a shape", min=1)] = 5,
    grid: Annotated[list[str] | None, option("--grid", help="AXIS=A,B,C or AXIS=LOW:HIGH[:STEP]; repeatable")] = None,
    ffn_factors: Annotated[str | None, option("--ffn-factors", help="ffn as multiples of hidden: 2.5,3,4")] = None,
    listing: Annotated[bool, option("--list", help="only list the shapes and their sizes")] = False,
    scores: Annotated[Path | None, option("--scores", help="scores of `minitron importance`")] = None,
    data: Annotated[list[str] | None, option("--data", help="text to distill on, SOURCE[:WEIGHT]")] = None,
    eval_data: Annotated[list[str] | None, option("--eval-data", help="held-out text [default: --data]")] = None,
    measure: Annotated[int, option("--measure", help="shapes to cut and measure")] = 8,
    refine: Annotated[int, option("--refine", help="of those, shapes to distill for a while")] = 4,
    refine_tokens: Annotated[int, option("--refine-tokens", help="tokens for each, 0: none", parser=parse_count)] = 0,
    eval_windows: Annotated[int, option("--eval-windows", help="held-out windows to measure on")] = 64,
    seq_len: Annotated[
        int | None, option("--seq-len", help="tokens a window [default: the context, at most 1024]")
    ] = None,
    batch: Annotated[int, option("--batch", help="sequences an update, when refining")] = 32,
    lr: Annotated[float, option("--lr", help="peak learning rate, when refining")] = 1e-4,
    seed: Annotated[int, option("--seed", help="data order, when refining")] = 0,
    separator: Annotated[str, option("--separator", help="between documents: auto, bos, eos, bos+eos, none")] = "auto",
    text_field: Annotated[str | None, option("--text-field", help="the column that holds the text")] = None,
    device: Annotated[str, option("--device", help="auto, cpu, cuda or cuda:N")] = "auto",
    devices: Annotated[
        str | None, option("--devices", help="refine on several at once: cuda:0,cuda:1 or cpu,cpu [default: all GPUs]")
    ] = None,
    tflops: Annotated[float, option("--gpu-tflops", help="peak of one GPU, for the hours of --dry-run")] = 989.0,
    mfu: Annotated[float, option("--mfu", help="share of that peak that training reaches")] = 0.4,
    output: Annotated[
        Path | None, option("-o", "--output", help="directory of the search [default: search-PARAMS]")
    ] = None,
    dry_run: Annotated[bool, option("--dry-run", help="only say what the search would take at most")] = False,
    as_json: Annotated[bool, option("--json", help="one JSON object on stdout")] = False,
) -> None:
    """Rank every shape in a budget by quality: forecast all, measure the best, distill the best of those a little."""
    from minitron_cli.search.flags import require_ranking, search_request

    request = search_request(
        require_model(model, NAME), params=params, tolerance=tolerance, memory=parse_bytes(memory) if memory else None,
        kv_tokens=kv_tokens, latency=latency, speedup=speedup, bench_grid=bench_grid,
        bench_batch_sizes=bench_batch_sizes, bench_repeats=bench_repeats, grid=tuple(grid or ()),
        ffn_factors=ffn_factors,
        scores=scores, data=tuple(data or ()), eval_data=tuple(eval_data or ()), measure=measure,
        refine=refine,
        refine_tokens=refine_tokens, eval_windows=eval_windows, seq_len=seq_len, batch=batch, lr=lr, seed=seed,
        separator=separator, text_field=text_field, device=device, output=output,
    )  # fmt: skip
    if listing:
        if request.speed is not None and request.speed.binds:
            raise MinitronError("--list knows sizes, not speeds", "leave out --latency and --speedup, or --list")
        _list(request, as_json)
        return
    if dry_run:
        _dry_run(request, tflops, mfu, as_json)
        return
    require_ranking(request)  # before torch is imported

    from minitron_cli.search.execute import search_and_write

    done = search_and_write(request, devices, say)
    emit(done.facts, as_json, lambda: _show(done.facts, done.picture))


def _show(found: Mapping[str, Any], picture: Path) -> None:
    timed = any(entry["speed"] for entry in found["candidates"])
    rows = [
        [f"{i}{' =' if e['tied'] else ''}", e["name"], count_text(e["parameters"]), f"+{e['forecast']:.3f}",
         _loss(e, "loss"), _loss(e, "refined"), *(_speed(e) if timed else [])]
        for i, e in enumerate(found["candidates"][:20], 1)
    ]  # fmt: skip
    columns = ["rank", "shape", "parameters", "forecast", "after the cut", "after distilling"]
    table([*columns, "to the last token", "speed"] if timed else columns, rows)
    if len(found["candidates"]) > 20:
        say(f"{len(found['candidates']) - 20} more in {found['output']}/search.json")
    say("'=' marks a tie with the best: the paired difference is within two standard errors")
    if timed:
        say(f"timed at {', '.join(found['speed_budget']['cells'])}, beside the source in the same rounds; worst cell")
    print(f"{picture}: loss against parameters" + (" and time" if timed else ""))
    print(f"next: {found['next']}")


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
    from minitron_cli.spec.shape import shape_name

    source = open_checkpoint(request.model)
    found = enumerate_shapes(source, request)
    entries: list[dict[str, Any]] = [
        {"name": shape_name(c.shape), "shape": dict(c.shape.sizes), "parameters": c.parameters,
         "non_embedding_parameters": c.non_embedding} for c in found
    ]  # fmt: skip
    rows = [[e["name"], f"{e['parameters']:,}", f"{e['non_embedding_parameters']:,}"] for e in entries]
    emit({"candidates": entries}, as_json, lambda: table(["shape", "parameters", "non-embedding"], rows))
    if not as_json:
        print(f"{len(entries)} shapes; next: the same line with --scores and --data instead of --list ranks them")


def _dry_run(request: Any, tflops: float, mfu: float, as_json: bool) -> None:
    from minitron_cli.cli.costs import hours_at, hours_text
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
