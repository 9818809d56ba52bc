"""The memory that a dry run forecasts against what training takes, on CPU processes.

    python -m tests.benchmarks.forecast [--size 30m] [--rounds 3]

Distils a Llama-shaped student from a teacher of its own shape for a few steps, in every combination that changes what
is held: one process and two, gradients whole and sharded, the teacher sharded or not, activations kept or computed
again, short and long micro-batches. Memory is the process's high-water mark over what it held before its models.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from minitron_cli.hf.process_group import join
from minitron_cli.training import announce, loop
from minitron_cli.training.assemble import assemble
from minitron_cli.training.interrupt import StopFlag
from minitron_cli.training.options import Options
from minitron_cli.training.prepare import prepare
from minitron_cli.training.run import rows_for
from minitron_cli.training.state import Progress
from minitron_cli.training.step import kd_step
from tests.benchmarks.loading import load_imports
from tests.benchmarks.measure import parse, reset_peak, status
from tests.benchmarks.prune import SHAPES, make_checkpoint
from tests.toys import toy_ids, toy_model, toy_tokenizer
from tests.training.runs import options, write_text

# Blocks that are freed go back at once: what malloc keeps for later would count as if it were in use.
LIVE = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "262144"}
# (ranks, sequences in a micro-batch, micro-batches of a rank, further options)
CASES = (
    (1, 1, 2, {}),
    (1, 8, 1, {}),
    (1, 8, 2, {"checkpoint_activations": True}),
    (2, 1, 2, {"gradients": "whole"}),
    (2, 1, 2, {"gradients": "sharded"}),
    (2, 1, 2, {"gradients": "sharded", "shard_teacher": False}),
    (2, 8, 1, {}),
    (2, 8, 2, {"gradients": "sharded", "checkpoint_activations": True}),
)


def line_of(case: int, root: Path, rounds: int) -> Options:
    """The run of a case: `rounds` steps of `--seq-len` tokens."""
    ranks, micro_batch, count, more = CASES[case]
    seq_len = int((root / "seq_len").read_text())
    return options(
        root / "model", root / "text.jsonl", root / f"out-{case}", root / "model", steps=rounds, warmup=0,
        batch=ranks * micro_batch * count, micro_batch=micro_batch, seq_len=seq_len, **more,
    )  # fmt: skip


def work(case: int, root: Path, rounds: int) -> None:
    """One rank: the first prints its memory and its forecast."""
    torch.set_num_threads(1)
    with join("cpu") as world:
        load_imports()
        warm_up()
        ready = announce.settle(prepare(line_of(case, root, rounds), world), world)
        before = reset_peak()
        with rows_for(ready, None, root, world) as rows:
            job = replace(assemble(ready, rows, world).job, rows=rows)
            loop.run(job, Progress(), StopFlag(), lambda progress, values: None)
        if world.first:
            need = announce.memory(ready, world)
            print(json.dumps({"took": status("VmHWM") - before, "need": need.total()}))


def warm_up() -> None:
    """One step of a toy: what torch's kernels set aside once is the libraries', not the run's."""
    step = kd_step(toy_model("llama"), toy_model("llama"))
    step(toy_ids(2, 32), torch.full((2, 32), 1 / 64))["loss"].backward()
    torch.optim.AdamW(step.parameters(), fused=True).step()


def measure(case: int, root: Path, rounds: int) -> dict[str, int]:
    ranks = CASES[case][0]
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    line = [sys.executable, *launch, "-m", "tests.benchmarks.forecast"]
    more = ["--case", str(case), "--root", str(root), "--rounds", str(rounds)]
    done = subprocess.run([*line, *more], capture_output=True, text=True, check=False, env=LIVE)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="30m", help="a shape of tests.benchmarks.prune")
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cases", type=int, nargs="+", default=list(range(len(CASES))))
    parser.add_argument("--case", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    args = parse(parser, size="tiny", seq_len=64, rounds=1, cases=[0, 4])
    if args.case is not None:
        work(args.case, args.root, args.rounds)
        return
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        make_checkpoint(root / "model", args.size)
        toy_tokenizer(SHAPES[args.size][0]["vocab_size"]).save_pretrained(root / "model")
        write_text(root / "text.jsonl", documents=400 * args.seq_len // 64)
        (root / "seq_len").write_text(str(args.seq_len))
        print(f"{args.size}, {args.seq_len} tokens a sequence, float32; GB of the first process")
        print(f"{'ranks':>5}{'micro':>7}{'forecast':>10}{'took':>8}{'ratio':>8}  options")
        for case in args.cases:
            ranks, micro_batch, count, more = CASES[case]
            found = measure(case, root, args.rounds)
            words = " ".join(f"{name}={value}" for name, value in more.items())
            print(
                f"{ranks:5}{micro_batch:5}x{count}{found['need'] / 1e9:10.3f}{found['took'] / 1e9:8.3f}"
                f"{found['need'] / found['took']:8.2f}  {words}", flush=True,
            )  # fmt: skip


if __name__ == "__main__":
    main()
