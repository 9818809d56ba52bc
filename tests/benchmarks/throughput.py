"""Tokens a second, share of the device's peak and memory of whole training steps: forward, backward, AdamW.

    python -m tests.benchmarks.throughput [--shapes llama-3b-1b] [--device cuda --dtype bfloat16] [--compile]

A random teacher and student of the shapes of `tests.benchmarks.step`, float32 master weights, the loss and the step of
training, one process. One line of JSON; `mfu` counts 2 FLOPs a teacher's and 6 a student's parameter and the attention,
and is null where the device's peak is not known. A pair that would not fit is not tried.
"""

import argparse
import json
from statistics import median

import torch

from minitron_cli.hf.devices import machine_words, synchronize
from minitron_cli.hf.memory import free_memory, peak_memory
from minitron_cli.hf.parts import blocks_of
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
    args = parse(parser, shapes="tiny", batch=2, seq_len=16, rounds=1)
    dtype = getattr(torch, args.dtype)
    with torch.device("meta"):
        configs = [build(shape, torch.device("meta"), dtype).config.to_dict() for shape in SHAPES[args.shapes]]
    teacher_size, student_size = (size_of_config(config, args.seq_len) for config in configs)
    need = memory(
        student_size, [teacher_size], tokens=args.batch * args.seq_len, world=1, item=dtype.itemsize,
        teacher_item=dtype.itemsize, shard_teacher=False, checkpointing=args.checkpoint_activations,
        accumulated=False, device=args.device.type,
    ).total()  # fmt: skip
    if need > free_memory(args.device):
        print(json.dumps({"skipped": f"needs {need / 1e9:.0f} GB, {free_memory(args.device) / 1e9:.0f} GB are free"}))
        return
    teacher = build(SHAPES[args.shapes][0], args.device, dtype)
    student = build(SHAPES[args.shapes][1], args.device, torch.float32)
    step = kd_step(student, teacher)
    if args.checkpoint_activations:
        run_again_in_backward(blocks_of(student))
    if args.compile:
        compile_blocks(student)
    optimizer = build_optimizer(step, (), (0.9, 0.95), 1e-8, 0.1)
    prime(optimizer)
    set_rate(optimizer, 1e-5)
    train = trainer(step, dtype if dtype != torch.float32 else None)
    ids = torch.randint(0, SHAPES[args.shapes][0][-1], (args.batch, args.seq_len), device=args.device)
    weights = torch.full(ids.shape, 1 / (ids.numel() - len(ids)), device=args.device)
    weights[:, -1] = 0

    def one() -> None:
        train(ids, weights)
        optimizer.step()
        optimizer.zero_grad()

    for _ in range(2):
        one()
    synchronize(args.device)
    seconds = median(seconds_of(one, args.device) for _ in range(args.rounds))
    flops = ids.numel() * (teacher_size.flops + 3 * student_size.flops)
    peak = peak_flops(machine_words(args.device), args.dtype)
    found = {
        "tokens_per_second": round(ids.numel() / seconds, 1),
        "flops_per_second": flops / seconds,
        "mfu": None if peak is None else round(flops / seconds / peak, 4),
        "peak_gb": round(peak_memory(args.device) / 1e9, 2),
        "forecast_gb": round(need / 1e9, 2),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
