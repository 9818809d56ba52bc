"""`minitron bench`: speed and memory of several models, interleaved, as ratios to the first."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minitron_cli.cli.common import (
    bytes_text,
    emit,
    examples,
    interruptible,
    parse_bytes,
    require_model,
    say,
    show_written,
    table,
)
from minitron_cli.cli.parameters import AS_JSON, DRY_RUN, MODELS, command_of, defaults_of, flag, typed

NAME = "bench"
EXAMPLES = examples(
    "minitron bench world/teacher runs/small --grid 64x64 --batch-sizes 1,8",
    "minitron bench meta-llama/Llama-3.1-8B runs/4b --grid 128x128,2048x128 --memory 24GB -o bench.json",
)


def _act(given: Mapping[str, Any]) -> None:
    from minitron_cli.evaluate.bench_request import BenchRequest, bench, check

    asked = tuple(given["models"] or [require_model(None, NAME)])
    request = BenchRequest(models=asked, **typed(given, "models", "dry_run", "as_json"))
    if given["dry_run"]:
        check(request)
        rounds, cells = request.warmup_rounds + request.repeats, [str(cell) for cell in request.cells]
        text = f"{len(asked)} models x {', '.join(cells)}: {rounds} rounds, engine {request.engine}"
        emit({"models": list(asked), "cells": cells, "rounds": rounds}, given["as_json"], lambda: print(text))
        return
    with interruptible("nothing was written; timings of the rounds that were done are not kept"):
        found = bench(request, say)
    emit(found, given["as_json"], lambda: _show(found, request.output))


command = command_of(
    (
        MODELS,
        flag("grid", str, "input x output tokens: 128x128,2048x128"),
        flag("batch_sizes", str, "batch sizes to time: 1,8"),
        flag("repeats", int, "timed rounds"),
        flag("warmup_rounds", int, "untimed rounds before them"),
        flag("memory", int, "also say how many sequences fit into this memory: 24GB", parser=parse_bytes),
        flag("engine", str, "hf, or vllm where it is installed"),
        flag("device", str, "auto, cpu, cuda, cuda:1"),
        flag("dtype", str, "auto, float32, bfloat16, float16"),
        flag("trust_remote_code", bool, "run code of the model directory"),
        flag("output", Path, "write the results to this file (JSON)", "-o", "--output"),
        DRY_RUN,
        AS_JSON,
    ),
    """Time prefill and decoding of models side by side. They take turns in the same rounds; the first is the reference.

    Figures are medians over the rounds, spreads their interquartile range; ratios are taken within a round.
    """,
    _act,
)


def defaults() -> dict[str, Any]:
    from minitron_cli.evaluate.bench_request import BenchRequest

    return defaults_of(BenchRequest)


def _show(found: dict[str, Any], output: Path | None) -> None:
    sizes = {model["name"]: model for model in found["models"]}
    speeds = ["prefill tok/s", "decode tok/s", "TTFT", "TPOT"]
    columns = ["model", "parameters", "in x out", "batch", *speeds, "KV", "peak"]
    ceiling = any(row["batch_ceiling"] is not None for row in found["rows"])
    table([*columns, "fits"] if ceiling else columns, [
        [
            row["model"], f"{sizes[row['model']]['parameters']:,}",
            f"{row['input']}x{row['output']}", str(row["batch"]),
            _speed(row, "prefill_tokens_per_second"), _speed(row, "decode_tokens_per_second"),
            f"{row['time_to_first_token']['median'] * 1e3:.2f} ms",
            f"{row['time_per_output_token']['median'] * 1e3:.2f} ms",
            "" if row["kv_bytes"] is None else bytes_text(row["kv_bytes"]),
            "" if row["peak_bytes"] is None else bytes_text(row["peak_bytes"]),
            *([f"{row['batch_ceiling']:,}"] if ceiling else []),
        ]
        for row in found["rows"]
    ])  # fmt: skip
    print("± is half the interquartile range; in brackets the ratio to the first model within a round")
    if output:
        show_written(output, [model["path"] for model in found["models"]])


def _speed(row: dict[str, Any], metric: str) -> str:
    return f"{row[metric]['median']:,.0f} ±{row[metric]['spread'] / 2:.0%} ({row['ratios'][metric]:.2f}x)"
