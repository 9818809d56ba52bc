"""What it takes to bring a student with its optimizer state and its teacher onto 1, 2, 4 and 8 ranks.

    python -m tests.benchmarks.loading [--size 1.2b] [--ranks 1 2 4 8] [--directory DIR]

Writes a Llama-shaped checkpoint of random bf16 weights and loads it as a float32 student and a bf16 teacher, on CPU
processes over gloo, and AdamW's two moments. `slices` is what a resumed run does: models are built empty, sharded, and
every rank reads its own rows, then those of a step checkpoint, weights and moments, whose files it hashes. `whole` is
what it replaces: every rank loads both models by from_pretrained, then the student is sharded; its moments are made
and not read. The columns are the largest over the ranks: `held` is what stays (on a GPU it would be the device's
memory), `host` the peak over the interpreter with its imports less what is held, `seconds` until the last rank is
ready. A way that would not fit into free memory is left out and said to.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist

from minitron_cli.hf.empty import materialise
from minitron_cli.hf.fill import fill
from minitron_cli.hf.load import load_model
from minitron_cli.hf.memory import free_host_memory
from minitron_cli.hf.parts import blocks_of
from minitron_cli.hf.process_group import CPU, World, join, own_part
from minitron_cli.training import state
from minitron_cli.training.distributed import mesh_of, shard
from minitron_cli.training.load import empty_student, empty_teacher
from minitron_cli.training.optimizer import build
from minitron_cli.training.step import KDStep, kd_step
from tests.benchmarks.measure import parse, reset_peak, status
from tests.benchmarks.prune import make_checkpoint

WAYS = ("whole", "slices")


Loaded = tuple[KDStep, torch.optim.Optimizer]


def by_slices(model: Path, world: World) -> Loaded:
    """As `training.assemble` does it, and a run that goes on; without a saved step the moments are those of a start."""
    student, teacher, mesh = empty_student(model), empty_teacher(model, torch.bfloat16), mesh_of(world)
    step = kd_step(student, teacher)
    step.shard_teachers(mesh)
    shard(step, list(blocks_of(student)), mesh, torch.float32)
    for one in (step, teacher):
        materialise(one, CPU)
    fill(student, model)
    fill(teacher, model)
    optimizer = primed(step)
    for saved in state.checkpoints(model.parent):
        state.load(saved, step, optimizer, world)
    return step, optimizer


def primed(step: KDStep) -> torch.optim.Optimizer:
    """AdamW with its moments."""
    optimizer = build(step, (), (0.9, 0.95), 1e-8, 0.1)
    state.prime(optimizer)
    return optimizer


def whole(model: Path, world: World) -> Loaded:
    """Both models on every rank, the student then sharded, the teacher not."""
    student = load_model(model, torch.float32).train().requires_grad_(True)
    step = kd_step(student, load_model(model, torch.bfloat16))
    shard(step, list(blocks_of(student)), mesh_of(world), torch.float32)
    return step, primed(step)


def held(step: KDStep, optimizer: torch.optim.Optimizer) -> int:
    """Bytes of this rank's weights and moments."""
    tensors = [*state.tensors(step, optimizer).values()]
    tensors += [p for teacher in step.teachers for p in teacher.parameters()]
    return sum(part.numel() * part.element_size() for part, _ in map(own_part, tensors))


def work(way: str, model: Path) -> None:
    """One of the ranks; the first prints the largest of each figure."""
    torch.set_num_threads(1)
    with join("cpu") as world:
        load_imports()
        world.barrier()
        before = reset_peak()
        started = time.perf_counter()
        loaded = by_slices(model, world) if way == "slices" else whole(model, world)
        world.barrier()
        seconds = time.perf_counter() - started
        peak, stays = status("VmHWM") - before, held(*loaded)
        found = {"held": stays, "host": max(0, peak - stays), "seconds": seconds}
        largest = torch.tensor(list(found.values()), dtype=torch.float64)
        if world.size > 1:
            dist.all_reduce(largest, dist.ReduceOp.MAX)
        if world.first:
            print(json.dumps(dict(zip(found, largest.tolist()))))


def load_imports() -> None:
    """Have transformers import what it imports late, so that it counts as the interpreter's."""
    from transformers import AutoModelForCausalLM, LlamaForCausalLM  # noqa: F401


def measure(way: str, model: Path, ranks: int) -> dict[str, float]:
    """The largest figure of any rank."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    line = [*torchrun, "-m", "tests.benchmarks.loading", "--work", way, "--model", str(model)]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def need(way: str, stored: int, ranks: int) -> int:
    """Bytes of all ranks together, from those of the bf16 checkpoint: float32 doubles them, as does each moment."""
    return stored * (3 * ranks + 6 if way == "whole" else 7) + ranks * (1 << 29)


def rows(args: argparse.Namespace, model: Path) -> Iterator[str]:
    """The table, line by line as it is measured."""
    stored = (model / "model.safetensors").stat().st_size
    yield f"{args.size}: {stored / 1e9:.2f} GB on disk, float32 student, moments, bf16 teacher; memory of a rank in GB"
    yield f"{'ranks':>5}  {'way':8}{'held':>8}{'host':>8}{'seconds':>9}"
    for ranks in args.ranks:
        for way in WAYS:
            if (wanted := need(way, stored, ranks)) > (free := free_host_memory()):
                yield f"{ranks:5}  {way:8} needs about {wanted / 1e9:.0f} GB, {free / 1e9:.0f} GB are free"
                continue
            found = measure(way, model, ranks)
            yield f"{ranks:5}  {way:8}{found['held'] / 1e9:8.2f}{found['host'] / 1e9:8.2f}{found['seconds']:9.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="1.2b", help="a shape of tests.benchmarks.prune")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--directory", type=Path, help="where the checkpoint goes for a while")
    parser.add_argument("--work", choices=(*WAYS, "save"), help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    args = parse(parser, size="tiny", ranks=[1, 2])
    if args.work == "save":
        step, optimizer = by_slices(args.model, World())
        state.save(args.model.parent, step, optimizer, state.Progress(1), World(), keep=1)
        return
    if args.work:
        work(args.work, args.model)
        return
    with tempfile.TemporaryDirectory(dir=args.directory) as directory:
        model = Path(directory) / "model"
        make_checkpoint(model, args.size)
        subprocess.run([sys.executable, "-m", __spec__.name, "--work", "save", "--model", str(model)], check=True)
        for line in rows(args, model):
            print(line, flush=True)


if __name__ == "__main__":
    main()
