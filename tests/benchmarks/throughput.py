"""Tokens a second, share of the device's peak and memory of whole training steps: forward, backward, AdamW.

    python -m tests.benchmarks.throughput [--shapes llama-3b-1b] [--device cuda --dtype bfloat16] [--compile]
        [--ranks N|all] [--shard-teacher]

A random teacher and student of the shapes of `tests.benchmarks.step`, float32 master weights, the loss and the step of
training; one process, or `--ranks` of them that split the student and, with `--shard-teacher`, the teacher. One line of
JSON: tokens and FLOPs of all ranks together, the peak memory of the first; `mfu` counts 2 FLOPs a teacher's and 6 a
student's parameter and the attention, and is null where the device's peak is not known. A pair that would not fit is
not tried.
"""

import argparse
import json
import os
import subprocess
import sys
from statistics import median

import torch

from minitron_cli.hf.devices import clock, machine_words
from minitron_cli.hf.memory import free_memory, peak_memory
from minitron_cli.hf.parts import blocks_of
from minitron_cli.hf.process_group import World, join
from minitron_cli.training.distributed import mesh_of, shard
from minitron_cli.training.load import run_again_in_backward
from minitron_cli.training.optimizer import build as build_optimizer
from minitron_cli.training.optimizer import set_rate, trainer
from minitron_cli.training.preflight import memory, size_of_config
from minitron_cli.training.state import prime
from minitron_cli.training.step import kd_step
from minitron_cli.training.student import compile_blocks
from tests.benchmarks.measure import parse, seconds_of
from tests.benchmarks.step import SHAPES, build

# Dense bfloat16 FLOP/s that NVIDIA's data sheets state, by a part of the device's name.
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "B200": 2250e12}


def peak_flops(words: str, dtype: str) -> float | None:
    """The peak of a device in bfloat16; of other types, and of CPUs, none is stated."""
    return next((peak for part, peak in PEAKS.items() if part in words), None) if dtype == "bfloat16" else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", choices=SHAPES, default="small")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--seq-len", type=int, default=4096)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--checkpoint-activations", action="store_true")
    parser.add_argument("--ranks", default="1", help="processes: a number, or all for one a GPU")
    parser.add_argument("--shard-teacher", action="store_true")
    args = parse(parser, shapes="tiny", batch=2, seq_len=16, rounds=1)
    ranks = int(args.ranks) if args.ranks != "all" else 2 if args.tiny else torch.cuda.device_count()
    if args.ranks == "all" and ranks < 2:
        print(json.dumps({"skipped": "one GPU: nothing to split over"}))
    elif ranks > 1 and "RANK" not in os.environ:
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        sys.exit(
            subprocess.run([*torchrun, "-m", "tests.benchmarks.throughput", *sys.argv[1:]], check=False).returncode
        )
    else:
        with join(str(args.device)) as world:
            measure(args, world)


def measure(args: argparse.Namespace, world: World) -> None:
    """Time the step on this process, with the others; the first says what all of them made."""
    dtype, device = getattr(torch, args.dtype), world.device
    with torch.device("meta"):
        configs = [build(shape, torch.device("meta"), dtype).config.to_dict() for shape in SHAPES[args.shapes]]
    teacher_size, student_size = (size_of_config(config, args.seq_len) for config in configs)
    need = memory(
        student_size, [teacher_size], tokens=args.batch * args.seq_len, world=world.size, item=dtype.itemsize,
        teacher_item=dtype.itemsize, shard_teacher=args.shard_teacher, checkpointing=args.checkpoint_activations,
        accumulated=False, device=device.type,
    ).total()  # fmt: skip
    if world.agree(0, need > free_memory(device))[1]:
        if world.first:
            print(json.dumps({"skipped": f"needs {need / 1e9:.0f} GB, {free_memory(device) / 1e9:.0f} GB are free"}))
        return
    teacher = build(SHAPES[args.shapes][0], device, dtype)
    student = build(SHAPES[args.shapes][1], device, torch.float32)
    step = kd_step(student, teacher)
    if args.checkpoint_activations:
        run_again_in_backward(blocks_of(student))
    if args.compile:
        compile_blocks(student)
    mesh = mesh_of(world)
    if args.shard_teacher:
        step.shard_teachers(mesh)
    shard(step, list(blocks_of(student)), mesh, dtype)
    optimizer = build_optimizer(step, (), (0.9, 0.95), 1e-8, 0.1)
    prime(optimizer)
    set_rate(optimizer, 1e-5)
    train = trainer(step, dtype if world.size == 1 and dtype != torch.float32 else None)
    ids = torch.randint(0, SHAPES[args.shapes][0][-1], (args.batch, args.seq_len), device=device)
    weights = torch.full(ids.shape, 1 / (ids.numel() - len(ids)) / world.size, device=device)
    weights[:, -1] = 0

    def one() -> None:
        train(ids, weights)
        optimizer.step()
        optimizer.zero_grad()

    for _ in range(2):
        one()
    clock(device)
    world.barrier()
    seconds, tokens = median(seconds_of(one, device) for _ in range(args.rounds)), world.size * ids.numel()
    flops = tokens * (teacher_size.flops + 3 * student_size.flops)
    peak = peak_flops(machine_words(device), args.dtype)
    found = {
        "ranks": world.size,
        "tokens_per_second": round(tokens / seconds, 1),
        "flops_per_second": flops / seconds,
        "mfu": None if peak is None else round(flops / seconds / peak / world.size, 4),
        "peak_gb": round(peak_memory(device) / 1e9, 2),
        "forecast_gb": round(need / 1e9, 2),
    }
    if world.first:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
