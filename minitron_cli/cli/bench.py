"""`minitron bench`: speed and memory of several models, interleaved, as ratios to the first."""

from pathlib import Path
from typing import Annotated, Any

from minitron_cli.cli.common import (
    argument,
    bytes_text,
    emit,
    examples,
    interruptible,
    option,
    parse_bytes,
    require_model,
    say,
    table,
)

NAME = "bench"
EXAMPLES = examples(
    "minitron bench world/teacher runs/small --grid 64x64 --batch-sizes 1,8",
    "minitron bench meta-llama/Llama-3.1-8B runs/4b --grid 128x128,2048x128 --memory 24GB -o bench.json",
)


def command(
    models: Annotated[list[str] | None, argument("MODEL...", help="model directories or hub ids")] = None,
    grid: Annotated[str, option("--grid", help="input x output tokens: 128x128,2048x128")] = "128x128",
    batch_sizes: Annotated[str, option("--batch-sizes", help="sequences at a time: 1,8")] = "1",
    repeats: Annotated[int, option("--repeats", help="timed rounds", min=1)] = 5,
    warmup: Annotated[int, option("--warmup-rounds", help="rounds before them", min=0)] = 1,
    memory: Annotated[str | None, option("--memory", help="a budget (24GB): how many sequences would fit")] = None,
    engine: Annotated[str, option("--engine", help="hf, or vllm where it is installed")] = "hf",
    device: Annotated[str, option("--device", help="auto, cpu, cuda, cuda:1")] = "auto",
    dtype: Annotated[str, option("--dtype", help="auto, float32, bfloat16, float16")] = "auto",
    trust_remote_code: Annotated[bool, option("--trust-remote-code", help="run code of the model directory")] = False,
    output: Annotated[Path | None, option("-o", "--output", help="write the results object here")] = None,
    dry_run: Annotated[bool, option("--dry-run", help="only say what would be timed")] = False,
    as_json: Annotated[bool, option("--json", help="one JSON object on stdout")] = False,
) -> None:
    """Time prefill and decoding of every model in the same interleaved rounds; the first model is the reference.

    A figure is the median over rounds, its spread the middle half's width over it; a ratio is taken within a round.
    """
    from minitron_cli.checkpoint.atomic import check_file
    from minitron_cli.checkpoint.reader import resolve_model
    from minitron_cli.evaluate.bench import check_context, measure, parse_grid

    given = models or [require_model(None, NAME)]
    cells = parse_grid(grid, batch_sizes)
    budget = parse_bytes(memory) if memory else None
    if output:
        check_file(output, given)
    if dry_run:
        shown = [str(cell) for cell in cells]
        text = f"{len(given)} models x {', '.join(shown)}: {warmup} + {repeats} rounds, engine {engine}"
        emit({"models": given, "cells": shown, "rounds": warmup + repeats}, as_json, lambda: print(text))
        return
    from minitron_cli.evaluate.engines import make_subjects
    from minitron_cli.evaluate.options import distinct_names
    from minitron_cli.hf.devices import choose_device, machine_words

    subjects = make_subjects(
        engine, [resolve_model(model) for model in given], distinct_names(given),
        device=device, dtype=dtype, trust_remote_code=trust_remote_code,
    )  # fmt: skip
    check_context([(subject.name, subject.context) for subject in subjects], cells)
    say(f"{len(subjects)} models, {len(cells)} cells, {warmup} + {repeats} rounds, engine {engine}")
    with interruptible("nothing was written; timings of the rounds that were done are not kept"):
        rows = measure(subjects, cells, repeats=repeats, warmup=warmup, say=say)
    machine = machine_words(choose_device(device))
    settings = {
        "machine": machine,
        "engine": engine,
        "device": device,
        "dtype": dtype,
        "grid": grid,
        "repeats": repeats,
        "memory": budget,
    }
    _finish(_results(subjects, given, rows, settings, budget), output, as_json)


def _results(
    subjects: list[Any], given: list[str], rows: list[dict[str, Any]], settings: dict[str, Any], budget: int | None
) -> dict[str, Any]:
    from minitron_cli.checkpoint.provenance import versions
    from minitron_cli.evaluate.bench import batch_ceiling

    for row, subject in zip(rows, subjects * (len(rows) // len(subjects))):
        kv = row["kv_bytes"]
        fits = budget and kv and batch_ceiling(budget, subject.weight_bytes, kv // row["batch"])
        row["batch_ceiling"] = fits if budget and kv else None
    return {
        "format": 1,
        "kind": "bench",
        "reference": subjects[0].name,
        "settings": settings,
        "models": [
            {"name": s.name, "path": path, "parameters": s.parameters, "weight_bytes": s.weight_bytes}
            for s, path in zip(subjects, given)
        ],
        "rows": rows,
        "versions": versions(),
    }


def _finish(found: dict[str, Any], output: Path | None, as_json: bool) -> None:
    if output:
        from minitron_cli.evaluate.request import write_results

        write_results(found, output, say)
    emit(found, as_json, lambda: _show(found, output))


def _show(found: dict[str, Any], output: Path | None) -> None:
    sizes = {model["name"]: model for model in found["models"]}
    columns = [
        "model",
        "parameters",
        "in x out",
        "batch",
        "prefill tok/s",
        "decode tok/s",
        "TTFT",
        "TPOT",
        "KV",
        "peak",
    ]
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
    print("± is the middle half of the rounds; in brackets the ratio to the first model within a round")
    if output:
        print(f"wrote {output}; next: minitron report on the run it belongs to")


def _speed(row: dict[str, Any], metric: str) -> str:
    return f"{row[metric]['median']:,.0f} ±{row[metric]['spread'] / 2:.0%} ({row['ratios'][metric]:.2f}x)"
