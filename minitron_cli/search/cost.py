"""What a search will take at the most, before it begins: no torch, nothing is read but the config and the headers."""

from dataclasses import fields
from typing import Any

from minitron_cli.checkpoint.hfconfig import config_for
from minitron_cli.checkpoint.reader import open_checkpoint
from minitron_cli.search.options import SearchOptions
from minitron_cli.search.run import CALIBRATED, enumerate_shapes, window_length
from minitron_cli.spec.shape import Shape
from minitron_cli.training import preflight
from minitron_cli.training.options import Options as TrainingOptions

FIRST_SHARE = 4  # every refined shape is first given this part of its tokens (see search/refine)


def cost(options: SearchOptions) -> dict[str, Any]:
    """Tokens, FLOPs, memory of a device and disk, as if every shape were the largest and none were given up.

    Timing reads nothing and is not counted. `options.devices` share the work; memory is that of one sequence at a time
    in bfloat16.
    """
    source = open_checkpoint(options.model)
    shapes = enumerate_shapes(source, options)
    seq_len, largest = window_length(source, options), shapes[0].shape
    axes = {axis for found in shapes for axis in CALIBRATED if found.shape.get(axis) != source.shape.get(axis)}

    def size(shape: Shape) -> preflight.Size:
        return preflight.size_of_config(config_for(source.config, source.family, shape), seq_len)

    student, teacher = size(largest), size(source.shape)
    cuts = len(axes) + min(options.measure, len(shapes))
    measured = options.eval_windows * seq_len
    refined = min(options.refine, len(shapes))
    steps = [refine_steps(tokens, options.batch, seq_len) for tokens in _rounds(options)]
    trained = sum(steps) * options.batch * seq_len * refined
    evaluated = measured * (cuts + refined * len(steps))
    flops = trained * (3 * student.flops + teacher.flops) + evaluated * student.flops + measured * teacher.flops
    need = preflight.memory(
        student, [teacher], tokens=seq_len, world=1, item=2, teacher_item=2, shard_teacher=False, checkpointing=False
    )
    item = source.num_bytes / teacher.parameters
    keep = next(int(f.default) for f in fields(TrainingOptions) if f.name == "keep")  # type: ignore[arg-type]
    runs = refined * len(steps) * preflight.disk(student, keep, 4)
    return {
        "shapes": len(shapes),
        "cuts": cuts,
        "tokens": trained + evaluated + measured,
        "trained_tokens": trained,
        "flops": flops,
        "memory_bytes": need.total() if refined else round(item * teacher.parameters),
        "disk_bytes": round(cuts * item * student.parameters) + runs,
    }


def _rounds(options: SearchOptions) -> list[int]:
    return [options.refine_tokens // FIRST_SHARE, options.refine_tokens] if options.refine else []


def refine_steps(tokens: int, batch: int, seq_len: int) -> int:
    """Updates that a budget of tokens pays for: at least one."""
    return max(1, tokens // (batch * seq_len))
