"""Everything that a GPU has to show, in four parts of less than ten minutes each: `make bench-gpu`, or

    python -m tests.benchmarks.gpu [--part 1] [--output gpu.json] [--seconds 540] [--model SmolLM2-135M]

Every measurement is a command of its own, written down as soon as it ends: the same line again goes on with what is
missing. A part begins nothing that it may not end within --seconds. The parts: 1 the loss against plain ones; 2 the
step against its bare limit, tokens a second, MFU, and where there are several GPUs a step on all of them, with the
teacher whole and split; 3 importance, layer streaming, second moments and their solving; 4 pruning on this disk and,
given a --model, what tokens of distillation buy its cut. Without a GPU it says so, unless --tiny is given: then all of
it runs on the CPU at its smallest size. Peers are measured where they can be imported.
"""

import argparse
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from minitron_cli.hf.devices import machine_words
from tests.benchmarks.measure import parse

GPU = ("--device", "cuda", "--dtype", "bfloat16")
LOSS = ("--tokens", "8192", "--hidden", "4096", *GPU)
SPEED = ("--seq-len", "4096", *GPU)
ALL = ("--checkpoint-activations", "--ranks", "all")


@dataclass(frozen=True, slots=True)
class Cell:
    """One measurement: a benchmark with its options, and the seconds that it takes at the most on an H100."""

    name: str
    part: int
    seconds: int
    benchmark: str
    options: tuple[str, ...]
    of_model: bool = False  # whether it is of the model that --model names


CELLS = (
    Cell("loss, vocabulary 128,256", 1, 150, "loss", (*LOSS, "--vocab", "128256")),
    Cell("loss, vocabulary 256,000", 1, 200, "loss", (*LOSS, "--vocab", "256000")),
    Cell("step, 1.2B <- 3B", 2, 120, "step", ("--shapes", "llama-3b-1b", "--tokens", "8192", *SPEED)),
    Cell("step, 4.5B <- 8B", 2, 150, "step", ("--shapes", "llama-8b-4b", "--tokens", "8192", *SPEED)),
    Cell("training, 1.2B <- 3B", 2, 90, "throughput", ("--shapes", "llama-3b-1b", *SPEED)),
    Cell("training, 1.2B <- 3B, compiled", 2, 150, "throughput", ("--shapes", "llama-3b-1b", "--compile", *SPEED)),
    Cell(
        "training, 1.2B <- 3B, checkpointed", 2, 90, "throughput",
        ("--shapes", "llama-3b-1b", "--checkpoint-activations", "--batch", "4", *SPEED),
    ),
    Cell(
        "training, 4.5B <- 8B, checkpointed", 2, 150, "throughput",
        ("--shapes", "llama-8b-4b", "--checkpoint-activations", *SPEED),
    ),
    Cell("training, 4.5B <- 8B, all GPUs", 2, 150, "throughput", ("--shapes", "llama-8b-4b", *ALL, *SPEED)),
    Cell(
        "training, 4.5B <- 8B, all GPUs, split teacher", 2, 150, "throughput",
        ("--shapes", "llama-8b-4b", "--shard-teacher", *ALL, *SPEED),
    ),
    Cell("importance, 8B", 3, 200, "importance", ("--shape", "llama-8b", *GPU)),
    Cell("importance, streamed", 3, 200, "importance", ("--stream", "--shape", "large", *GPU)),
    Cell("solving one 8B layer", 3, 150, "moments", ("--layer",)),
    Cell("prune, 8B", 4, 300, "prune", ("--size", "8b", "--rounds", "2")),
    Cell("trajectory", 4, 400, "trajectory", ("--tokens", "50M", "--device", "cuda"), of_model=True),
)  # fmt: skip


def cells(args: argparse.Namespace) -> list[Cell]:
    """What is to be measured."""
    there = [cell for cell in CELLS if args.model is not None or args.tiny or not cell.of_model]
    return [cell for cell in there if args.part in (None, cell.part)]


def measure(cell: Cell, tiny: bool, model: Path | None = None) -> dict[str, Any]:
    """Run one cell in a process of its own: its command, exit code, seconds and what it printed."""
    options = [option for option in cell.options if option in _FLAGS] + ["--tiny"] if tiny else list(cell.options)
    if cell.of_model and not tiny:
        options += ["--model", str(model)]
    command = ["-m", f"tests.benchmarks.{cell.benchmark}", *options]
    started = time.perf_counter()
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
    return {
        "command": " ".join(["python", *command]),
        "code": done.returncode,
        "seconds": round(time.perf_counter() - started, 1),
        "lines": done.stdout.splitlines(),
        "error": done.stderr.splitlines()[-12:] if done.returncode else [],
    }


_FLAGS = ("--stream", "--layer", "--compile", "--checkpoint-activations", "--ranks", "all", "--shard-teacher")


def machine(device: torch.device) -> dict[str, Any]:
    """What the figures were measured on."""
    memory = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None
    return {
        "device": machine_words(device), "memory": memory, "torch": torch.__version__,
        "transformers": transformers.__version__,
    }  # fmt: skip


def read(file: Path, here: dict[str, Any]) -> dict[str, Any]:
    """What was measured before on this machine; figures of another one are not mixed with it."""
    found = json.loads(file.read_text()) if file.is_file() else {"machine": here, "cells": {}}
    if found["machine"] != here:
        sys.exit(f"error: {file} is of another machine ({found['machine']['device']})\nhint: give another --output")
    return found


def table(found: dict[str, Any]) -> None:
    print(f"{found['machine']['device']}, torch {found['machine']['torch']}")
    for name, cell in found["cells"].items():
        print(f"\n{name}  ({cell['seconds']:.0f} s, {cell['command']})")
        for line in cell["lines"] if cell["code"] == 0 else [*cell["error"], f"failed with code {cell['code']}"]:
            print(f"  {line}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", type=int, choices=sorted({cell.part for cell in CELLS}), help="[default: all]")
    parser.add_argument("--output", type=Path, default=Path("gpu.json"))
    parser.add_argument("--seconds", type=float, default=540.0, help="for this call")
    parser.add_argument("--model", type=Path, help="a real model, for the trajectory")
    args = parse(parser)
    if not args.tiny and not torch.cuda.is_available():
        print("error: torch sees no GPU\nhint: --tiny runs everything on the CPU, to see that it runs", file=sys.stderr)
        return 1
    device = torch.device("cpu" if args.tiny else "cuda")
    found, began, left = read(args.output, machine(device)), time.monotonic(), []
    for cell in cells(args):
        if found["cells"].get(cell.name, {}).get("code") == 0:
            continue
        if not args.tiny and time.monotonic() - began + cell.seconds > args.seconds:
            left.append(cell.name)
            continue
        print(f"{cell.name} ...", file=sys.stderr, flush=True)
        found["cells"][cell.name] = measure(cell, args.tiny, args.model)
        args.output.write_text(json.dumps(found, indent=1) + "\n")
    table(found)
    failed = [name for name, cell in found["cells"].items() if cell["code"]]
    if left:
        print(f"\nleft for the next call: {'; '.join(left)}")
    if failed:
        print(f"\nfailed: {'; '.join(failed)}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
