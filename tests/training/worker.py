"""One rank of the two-process test: `torchrun ... -m tests.training.worker MODELS OUT CASE...`.

For every case it makes the weights before the first step, the gradients of one step on unequal rows and the weights
after three updates, whole, and rank 0 saves them to OUT/CASE-SIZE.safetensors. In one process `run` does the same: the
oracle.
"""

import os
import sys
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor

from minitron_cli.checkpoint.reader import open_checkpoint
from minitron_cli.hf.empty import materialise
from minitron_cli.hf.fill import fill
from minitron_cli.hf.parts import blocks_of
from minitron_cli.hf.process_group import World, join
from minitron_cli.training import loop
from minitron_cli.training.distributed import mesh_of, release, shard
from minitron_cli.training.interrupt import StopFlag
from minitron_cli.training.load import empty_student, empty_teacher, fill_student, load_student, run_again_in_backward
from minitron_cli.training.loop import Job
from minitron_cli.training.masks.term import Masks
from minitron_cli.training.objectives import Objective
from minitron_cli.training.optimizer import build, trainer
from minitron_cli.training.reading import Reading
from minitron_cli.training.rows import Share
from minitron_cli.training.saving import Saver
from minitron_cli.training.schedule import Schedule
from minitron_cli.training.state import Progress, prime
from minitron_cli.training.step import kd_step
from minitron_cli.training.stretches import Stretch
from tests.toys import toy_ids

# name: (student, teacher, checkpoint activations, shard the teacher, seed of new weights)
CASES = {
    "untied": ("untied", "teacher", False, False, None),
    "tied": ("tied", "teacher", False, True, None),
    "tied teacher": ("untied", "tied", True, True, None),
    "experts from scratch": ("experts", "experts", False, True, 3),
    "masked": ("untied", "teacher", True, True, None),
    "larger vocabulary": ("tied", "larger", False, True, None),
}
SIZES = {"hidden": 36, "ffn": 56, "head": 4, "layer": 2}  # of what masks learn to keep
ROWS, LENGTH = 8, 20
# The student's 97 tokens in a teacher of 120, and one that only the teacher has.
*_IDS, GONE = torch.randperm(120, generator=torch.Generator().manual_seed(0))[:98].tolist()
IMAGE = torch.tensor(_IDS)


def unequal_mask(step: int) -> torch.Tensor:
    """(row, token): the two ranks' halves differ tenfold in their number of targets."""
    lengths = torch.randint(1, LENGTH, (ROWS,), generator=torch.Generator().manual_seed(step))
    lengths[: ROWS // 2] = torch.arange(1, ROWS // 2 + 1).clamp(max=2)
    mask = (torch.arange(LENGTH)[None] < lengths[:, None]).float()
    mask[:, -1] = 0.0
    return mask


def read_shorter(ids: torch.Tensor) -> Reading:
    """A teacher's reading that has the first two tokens of every row as one that the student lacks."""
    own = IMAGE[ids][:, 2:]
    read = torch.nn.functional.pad(torch.cat([torch.full_like(own[:, :1], GONE), own], dim=1), (0, 1))
    return Reading(read, (torch.arange(LENGTH) - 1).expand(len(ids), -1).contiguous())


def job(models: Path, case: str, world: World) -> Job:
    """The same step in any world: four micro-batches over all ranks."""
    name, of, checkpointing, shard_teacher, seed = CASES[case]
    student, teacher, more = empty_student(models / name), empty_teacher(models / of, torch.float32), ()
    if case == "masked":
        student = load_student(models / name, from_scratch=False, seed=0)
        source = open_checkpoint(models / name).shape
        more = (Masks(student, source, source.with_(**SIZES), rates=(3.0, 300.0), warmup=2, seed=0),)
    if checkpointing:
        run_again_in_backward(blocks_of(student))
    objective = Objective(layer_map=((1, 1),), embedding=True, ce_weight=0.3)
    images = [IMAGE] if of == "larger" else []
    step = kd_step(student, teacher, objective, more=more, images=images)
    mesh = mesh_of(world)
    if shard_teacher:
        step.shard_teachers(mesh)
    shard(step, list(blocks_of(student)), mesh, torch.float32, step.exact_modules())
    for model in (step, teacher):
        materialise(model, world.device)
    if not more:
        fill_student(student, models / name, seed)
    fill(teacher, models / of)
    step.check_heads()
    release(step)
    optimizer = build(step, step.param_groups(), (0.9, 0.95), 1e-8, 0.1)
    prime(optimizer)
    part = slice(world.rank * ROWS // world.size, (world.rank + 1) * ROWS // world.size)
    return Job(
        step=step,
        train=trainer(step, None),
        optimizer=optimizer,
        schedule=Schedule("constant", 1e-3, 1e-4, 0, 3),
        rows=lambda s: Share(
            toy_ids(ROWS, LENGTH, seed=s)[part],
            unequal_mask(s)[part],
            readings=tuple(read_shorter(toy_ids(ROWS, LENGTH, seed=s)[part]) for _ in images),
        ),
        stretches=(Stretch(0, 3, ROWS, LENGTH, micro_batch=2, flops_per_token=1.0),),
        grad_clip=1.0,
        spike_guard=None,
        seed=0,
        world=world,
        gradients="sharded" if shard_teacher else "whole",
    )


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def run(models: Path, out: Path, case: str, world: World) -> None:
    of = job(models, case, world)
    found = {f"start.{n}": whole(p) for n, p in of.step.named_parameters()}
    for mode in ("whole", "sharded"):
        loop.accumulate(replace(of, gradients=mode), of.rows(0), int(unequal_mask(0).sum()), micro_batch=2)
        found |= {f"grad.{mode}.{n}": whole(p.grad) for n, p in of.step.named_parameters() if p.grad is not None}
        of.optimizer.zero_grad()
    seen: list[dict[str, float]] = []
    progress = loop.run(of, Progress(), StopFlag(), lambda _, values: seen.append(dict(values)))
    found |= {f"weight.{name}": whole(p) for name, p in of.step.named_parameters()}
    found |= {f"value.{step}.{name}": torch.tensor(v) for step, line in enumerate(seen) for name, v in line.items()}
    saver = Saver(out / f"{case}-{world.size}", of.step, of.optimizer, world, keep=1, copies=True)
    saver.save(progress)
    saver.wait()
    saver.close()
    if world.rank == 0:
        save_file({name: t.contiguous() for name, t in found.items()}, out / f"{case}-{world.size}.safetensors")


if __name__ == "__main__":
    torch.set_num_threads(1)
    with join("cpu") as here:
        assert here.size == int(os.environ["WORLD_SIZE"])
        for name in sys.argv[3:]:
            run(Path(sys.argv[1]), Path(sys.argv[2]), name, here)
