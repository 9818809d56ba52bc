"""What learned masks cost: a training step of a masked model against a plain one of the same model, time and memory.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.masked_step [--shapes small] [--tokens 2048] [--rounds 5] --cpu-time

A step is forward, backward and AdamW on cross-entropy; masks are on hidden channels, neurons, heads and layers. Times
are paired; memory is what a step adds at its highest to weights, gradients and moments, in a process of its own.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable
from statistics import median

import torch

from minitron_cli.families import family_of
from minitron_cli.spec.shape import shape_of
from minitron_cli.training.masks.term import Masks
from minitron_cli.training.objectives import LOGITS_ONLY
from minitron_cli.training.optimizer import build as adam
from minitron_cli.training.optimizer import set_rate
from minitron_cli.training.state import prime
from minitron_cli.training.step import kd_step
from tests.benchmarks.measure import paired_ratio, paired_seconds, parse, peak_bytes
from tests.benchmarks.step import SHAPES, build

ARMS = ("plain", "masked")


def step_of(arm: str, shapes: str, tokens: int, length: int, device: torch.device) -> Callable[[], None]:
    """One update of the teacher's shape of `shapes`, as the trainer makes it."""
    torch.manual_seed(0)
    model = build(SHAPES[shapes][0], torch.device("cpu"), torch.float32)
    config = model.config.to_dict()
    source = shape_of(family_of("llama"), config)
    cut = {axis: source[axis] * 3 // 4 for axis in ("hidden", "ffn")} | {"layer": max(1, source["layer"] - 1)}
    target = source.with_(**cut, head=source["head"] // 2 if source["head"] > source["kv"] else source["head"])
    more = (Masks(model, source, target, rates=(1e4, 1e4), warmup=10, seed=0),) if arm == "masked" else ()
    step = kd_step(model, None, LOGITS_ONLY, more=more).to(device).train()
    optimizer = adam(step, step.param_groups(), (0.9, 0.95), 1e-8, 0.0)
    prime(optimizer)
    set_rate(optimizer, 1e-4)
    ids = torch.randint(0, source["vocab"], (tokens // length, length), device=device)
    weights = torch.full(ids.shape, 1 / (ids.numel() - len(ids)), device=device)
    weights[:, -1] = 0
    for parameter in step.parameters():
        parameter.grad = torch.zeros_like(parameter)

    def run() -> None:
        found = step(ids, weights)
        found["loss"].backward()
        optimizer.step()
        step.after_update(found)
        optimizer.zero_grad(set_to_none=False)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", choices=SHAPES, default="small")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cpu-time", action="store_true", help="seconds of this process, not of the clock")
    parser.add_argument("--memory-of", choices=ARMS, help="only print the bytes that a step of this arm adds")
    args = parse(parser, shapes="tiny", tokens=64, seq_len=16, rounds=1)
    make = [args.shapes, args.tokens, args.seq_len, args.device]
    if args.memory_of:
        print(peak_bytes(step_of(args.memory_of, *make), args.device))
        return
    seconds = paired_seconds({arm: step_of(arm, *make) for arm in ARMS}, args.rounds, args.device, args.cpu_time)
    line = [sys.executable, "-m", "tests.benchmarks.masked_step", *sys.argv[1:], "--memory-of"]
    added = {arm: int(subprocess.check_output([*line, arm], text=True).split()[-1]) for arm in ARMS}
    print(f"{args.shapes}, {args.tokens} tokens, float32 {args.device}, {torch.get_num_threads()} threads")
    print(f"{'':10}{'seconds':>10}{'x plain':>10}{'MB added':>10}{'x plain':>10}")
    for arm, times in seconds.items():
        ratio, memory = 1 / paired_ratio(seconds["plain"], times), added[arm] / max(1, added["plain"])
        print(f"{arm:10}{median(times):10.3f}{ratio:10.3f}{added[arm] / 1e6:10.0f}{memory:10.3f}")


if __name__ == "__main__":
    main()
