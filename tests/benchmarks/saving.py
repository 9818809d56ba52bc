"""What a checkpoint costs the steps: written between them, and behind them from a copy.

    python -m tests.benchmarks.saving [--size 30m] [--rounds 5] [--steps 12] [--directory DIR]

Trains a Llama-shaped student by cross-entropy on a CPU, `--steps` updates at a time with one thread, of which the
first is saved: not at all, between the steps, behind them; the three take turns. `adds` is the time of those steps
beyond that of the steps without a save (median over the rounds), and of it what the loop itself was running, the copy
included. The thread that writes takes processor time from the steps where they use all cores, and where cores are
shared `adds` is noise before it is a figure. The copy alone stands beside it, in processor seconds: into new memory, as
of the first save, and into that of the save before. The last columns are what a save adds to the steps where every 50th
is saved, as in the shortest runs: of the time that passes, and of what the loop was running.
"""

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch

from minitron_cli.hf.process_group import World
from minitron_cli.training import loop, state
from minitron_cli.training.assemble import assemble
from minitron_cli.training.interrupt import StopFlag
from minitron_cli.training.loop import Job
from minitron_cli.training.prepare import prepare
from minitron_cli.training.run import rows_for
from minitron_cli.training.saving import Saver
from minitron_cli.training.state import Progress
from tests.benchmarks.measure import parse
from tests.benchmarks.prune import SHAPES, make_checkpoint
from tests.toys import toy_tokenizer
from tests.training.runs import options, write_text

WAYS = ("not at all", "between", "behind")
EVERY = 50


def measure(job: Job, saver: Saver | None) -> tuple[float, float]:
    """Seconds of all steps, and those that the thread of the loop was running; what is written after them is not."""
    started, ran = time.perf_counter(), time.thread_time()

    def after(progress: Progress, values: object) -> None:
        if progress.step == 1 and saver is not None:
            saver.save(progress)

    loop.run(job, Progress(), StopFlag(), after)
    found = time.perf_counter() - started, time.thread_time() - ran
    if saver is not None:
        saver.wait()
    return found


def copy_seconds(job: Job, run: Path) -> tuple[float, float]:
    """Processor seconds of the copy alone: into new memory, and again into the same."""
    copies: dict[str, torch.Tensor] = {}
    found = []
    for _ in range(2):
        started = time.thread_time()
        state.draft(run, job.step, job.optimizer, Progress(), job.world, copies)
        found.append(time.thread_time() - started)
    return found[0], found[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="30m", help="a shape of tests.benchmarks.prune")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--seq-len", type=int, default=128)
    parser.add_argument("--directory", type=Path, help="where the checkpoints go for a while")
    args = parse(parser, size="tiny", rounds=1, steps=2, seq_len=32)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=args.directory) as directory:
        root, world = Path(directory), World()
        make_checkpoint(root / "model", args.size)
        toy_tokenizer(SHAPES[args.size][0]["vocab_size"]).save_pretrained(root / "model")
        line = options(
            root / "model", write_text(root / "text.jsonl", documents=400), root / "out", steps=args.steps,
            warmup=0, batch=args.batch, micro_batch=args.batch, seq_len=args.seq_len,
        )  # fmt: skip
        ready = prepare(line, world)
        with rows_for(ready, None, root, world) as rows:
            job = replace(assemble(ready, rows, world).job, rows=rows)
            savers = {
                way: Saver(root / way, job.step, job.optimizer, world, 1, copies=way == "behind") for way in WAYS[1:]
            }
            found: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
            for number in range(args.rounds + 1):
                for way in WAYS:
                    taken = measure(job, savers.get(way))
                    if number:  # the first round warms up
                        found[way].append(taken)
            for saver in savers.values():
                saver.close()
            copies = [copy_seconds(job, root / "copies") for _ in range(args.rounds)]
        size = sum(t.numel() * t.element_size() for t in state.tensors(job.step, job.optimizer).values())
    step, running = (median(one[i] / args.steps for one in found["not at all"]) for i in range(2))
    print(
        f"{args.size}, {args.batch} x {args.seq_len} tokens a step of {step:.3f} s, {running:.3f} of them running; "
        f"{size / 1e6:,.0f} MB a save"
    )
    print("the copy alone: {:.3f} s, then {:.3f} s".format(*map(median, zip(*copies))))
    print(f"{'written':10}{'adds s':>9}{'loop ran s':>12}{f'of {EVERY} steps':>14}{'of the running':>16}")
    for way in WAYS[1:]:
        wall, ran = (median(one[i] - base[i] for one, base in zip(found[way], found["not at all"])) for i in range(2))
        print(f"{way:10}{wall:9.3f}{ran:12.3f}{wall / (EVERY * step):14.1%}{ran / (EVERY * running):16.2%}")


if __name__ == "__main__":
    main()
