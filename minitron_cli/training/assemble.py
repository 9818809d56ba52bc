"""Put a run together: models in memory, the step sharded or cast, the optimizer, the rows."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from minitron_cli.checkpoint.provenance import read_plan
from minitron_cli.spec.plan import hidden_origin
from minitron_cli.training.branch import check_branch
from minitron_cli.training.distributed import World, choose_device, shard, shard_frozen
from minitron_cli.training.divergences import Divergence
from minitron_cli.training.head import head_of
from minitron_cli.training.inputs import Models
from minitron_cli.training.load import compute_dtype, load_student, load_teacher, run_again_in_backward
from minitron_cli.training.loop import Job
from minitron_cli.training.objectives import Objective, build_objective
from minitron_cli.training.optimizer import Call, build, measurer, trainer
from minitron_cli.training.options import Options
from minitron_cli.training.preflight import size_of
from minitron_cli.training.rows import Rows, choose_micro_batch
from minitron_cli.training.schedule import Schedule
from minitron_cli.training.settle import schedule_of
from minitron_cli.training.state import prime
from minitron_cli.training.step import KDStep
from minitron_cli.training.student import backbone_of, blocks_of, compile_blocks


@dataclass(frozen=True, slots=True)
class Assembly:
    """A job, the call that measures its step without training it, and the type that one process casts weights to."""

    job: Job
    measure: Call
    cast_to: torch.dtype | None


@dataclass(frozen=True, slots=True)
class StepPlan:
    """How the rate goes and how a batch is cut up: all that can be refused before a model is loaded."""

    schedule: Schedule
    micro_batch: int


def plan_steps(options: Options, world: World) -> StepPlan:
    """Cut the batch into this world's micro-batches, and fix the learning rate's course."""
    assert options.seq_len is not None
    micro_batch = choose_micro_batch(options.micro_batch, options.batch, world.size, options.seq_len, world.device)
    return StepPlan(schedule_of(options, check_branch(options) if options.branch_from else None), micro_batch)


def assemble(options: Options, models: Models, rows: Rows, world: World, plan: StepPlan) -> Assembly:
    """Load, shard and connect everything that a run needs."""
    assert options.seq_len is not None
    dtype = compute_dtype(options.dtype, world.device)
    step = build_step(options, models, world, dtype)
    cast_to = dtype if world.size == 1 and dtype != torch.float32 else None
    optimizer = build(step, options.betas, options.eps, options.weight_decay)
    prime(optimizer)
    teachers = sum(size_of(path, options.seq_len).flops for path in models.teachers)
    job = Job(
        step=step,
        train=trainer(step, cast_to),
        optimizer=optimizer,
        schedule=plan.schedule,
        rows=rows,
        micro_batch=plan.micro_batch,
        grad_clip=options.grad_clip,
        spike_guard=options.spike_guard,
        seed=options.seed,
        tokens_per_step=options.batch * options.seq_len,
        flops_per_token=3 * size_of(models.student, options.seq_len).flops + teachers,
        world=world,
    )
    return Assembly(job, measurer(step, cast_to), cast_to)


def build_step(options: Options, models: Models, world: World, dtype: torch.dtype) -> KDStep:
    """The student and its teachers as one step, on their devices, sharded where there are several."""
    code = options.trust_remote_code
    student = load_student(models.student, from_scratch=options.from_scratch, seed=options.seed, trust_remote_code=code)
    teachers = [_teacher(path, options, world, dtype) for path in models.teachers]
    objective = objective_of(options, models, student, teachers)
    step = KDStep(student, teachers, objective, origin=_origin(models.student, teachers), seed=options.seed)
    for teacher in teachers:
        if options.shard_teacher:
            shard_frozen(backbone_of(teacher), list(blocks_of(backbone_of(teacher))), world)
            teacher.to(world.device)
    if options.checkpoint_activations:
        run_again_in_backward(blocks_of(backbone_of(student)))
    if options.compile:
        compile_blocks(backbone_of(student))
    shard(step, list(blocks_of(backbone_of(student))), world, dtype)
    return step.to(world.device)


def objective_of(options: Options, models: Models, student: nn.Module, teachers: list[nn.Module]) -> Objective:
    """The loss that the options ask for between these models; plain cross-entropy where there is no teacher."""
    divergence = Divergence(options.kind, options.temperature, options.beta)
    if models.recording is not None:
        vocab = models.recording.header.vocab
        return Objective(
            divergence=divergence, ce_weight=options.ce_weight, vocab=vocab, implementation=options.loss_impl
        )
    if not teachers:
        return Objective(implementation=options.loss_impl)
    plan = read_plan(models.student)
    heads = {head_of(m).vocab for m in (student, *teachers)}
    return build_objective(
        options.loss,
        len(blocks_of(backbone_of(student))),
        len(blocks_of(backbone_of(teachers[0]))),
        layer_map=options.layer_map,
        kept_layers=None if plan is None or "layer" not in plan.kept else plan.kept["layer"].tolist(),
        divergence=divergence,
        ce_weight=options.ce_weight,
        metric=options.hidden_loss,
        implementation=options.loss_impl,
        shares=models.shares,
        # The tokenizers agree: where heads are padded to different lengths, only the ids that all have are compared.
        vocab=min(heads) if len(heads) > 1 else None,
    )


def _teacher(path: Path, options: Options, world: World, dtype: torch.dtype) -> nn.Module:
    device = choose_device(options.teacher_device) if options.teacher_device else world.device
    stored = dtype if options.teacher_dtype == "auto" else compute_dtype(options.teacher_dtype, device)
    teacher = load_teacher(path, stored, options.trust_remote_code)
    return teacher if options.shard_teacher and world.size > 1 else teacher.to(device)


def _origin(student: Path, teachers: list[nn.Module]) -> np.ndarray | None:
    """What the student's channels were, when it was cut from a model as wide as its (first) teacher."""
    plan = read_plan(student)
    if plan is None or not teachers or plan.source["hidden"] != teachers[0].config.hidden_size:  # type: ignore[union-attr]
        return None
    return hidden_origin(plan)
