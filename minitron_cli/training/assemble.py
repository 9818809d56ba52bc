"""Put a run together: models in memory, the step sharded or cast, the optimizer, the rows."""

from dataclasses import dataclass

import torch
from torch import nn

from minitron_cli.hf.devices import choose_device, choose_dtype
from minitron_cli.hf.empty import materialise
from minitron_cli.hf.fill import fill
from minitron_cli.hf.parts import blocks_of
from minitron_cli.hf.process_group import World
from minitron_cli.training.distributed import mesh_of, release, shard
from minitron_cli.training.load import empty_student, empty_teacher, fill_student, load_student, run_again_in_backward
from minitron_cli.training.loop import Job
from minitron_cli.training.masks.term import Masks
from minitron_cli.training.optimizer import Call, build, measurer, trainer
from minitron_cli.training.prepare import Prepared
from minitron_cli.training.routers import RouterDrift
from minitron_cli.training.rows import Rows
from minitron_cli.training.state import prime
from minitron_cli.training.step import KDStep, kd_step
from minitron_cli.training.student import compile_blocks
from minitron_cli.training.terms import Term
from minitron_cli.training.trainable import restrict


@dataclass(frozen=True, slots=True)
class Assembly:
    """A job, the call that measures its step without training it, and the type that one process casts weights to."""

    job: Job
    measure: Call
    cast_to: torch.dtype | None


def assemble(ready: Prepared, rows: Rows, world: World) -> Assembly:
    """Load, shard and connect everything that a run needs."""
    options = ready.options
    dtype = choose_dtype(options.dtype, world.device)
    step = build_step(ready, world, dtype)
    cast_to = dtype if world.size == 1 and dtype != torch.float32 else None
    optimizer = build(step, step.param_groups(), options.betas, options.eps, options.weight_decay)
    prime(optimizer)
    job = Job(
        step=step,
        train=trainer(step, cast_to, step.exact_modules()),
        optimizer=optimizer,
        schedule=ready.schedule,
        rows=rows,
        stretches=ready.stretches,
        grad_clip=options.grad_clip,
        spike_guard=options.spike_guard,
        seed=options.seed,
        world=world,
        gradients=options.gradients,
    )
    return Assembly(job, measurer(step, cast_to, step.exact_modules()), cast_to)


def build_step(ready: Prepared, world: World, dtype: torch.dtype) -> KDStep:
    """The student and its teachers as one step, on their devices, sharded where there are several."""
    options, models = ready.options, ready.models
    code = options.trust_remote_code
    # Masks see how a student is wired by running it, so that one is loaded whole.
    student = (
        empty_student(models.student, code)
        if ready.shear is None
        else load_student(models.student, from_scratch=False, seed=options.seed, trust_remote_code=code)
    )
    restrict(student, options)
    there = choose_device(options.teacher_device) if options.teacher_device else world.device
    stored = dtype if options.teacher_dtype == "auto" else choose_dtype(options.teacher_dtype, there)
    teachers = [empty_teacher(path, stored, code) for path in models.teachers]
    more: tuple[Term, ...] = (masks_of(ready, student),) if ready.shear is not None else ()
    if ready.routers:
        more = (*more, RouterDrift(student, teachers[0], ready.routers))
    images = [None if reader is None else torch.from_numpy(reader.image) for reader in models.readers]
    step = kd_step(student, teachers, ready.objective, origin=ready.origin, seed=options.seed, more=more, images=images)
    if options.checkpoint_activations:
        run_again_in_backward(blocks_of(student))
    if options.compile:
        compile_blocks(student)
    mesh = mesh_of(world, options.replicate)
    if options.shard_teacher:
        step.shard_teachers(mesh)
    shard(step, list(blocks_of(student)), mesh, dtype, step.exact_modules())
    # Sharded first, memory then: no rank ever holds a model whole.
    materialise(step, world.device)
    if ready.shear is None:
        fill_student(student, models.student, options.seed if options.from_scratch else None)
    for teacher, path in zip(teachers, models.teachers):
        materialise(teacher, there)
        fill(teacher, path)
    step.check_heads()
    release(step)
    return step


def masks_of(ready: Prepared, student: nn.Module) -> Masks:
    """The learned masks of a run that shears its student."""
    options, shear = ready.options, ready.shear
    assert shear is not None
    assert options.mask_warmup is not None
    return Masks(
        student,
        ready.sizes[0].shape,
        shear.target,
        rates=(options.mask_lr / options.lr, options.multiplier_lr / options.lr),
        warmup=options.mask_warmup,
        seed=options.seed,
        scores=shear.scores,
    )
