"""What a search takes at most, before it begins: from the config and the headers, without torch."""

from typing import Any

from minitron_cli.checkpoint.reader import open_checkpoint
from minitron_cli.search.identity import check_request
from minitron_cli.search.request import SearchRequest
from minitron_cli.search.shapes import enumerate_shapes, window_length
from minitron_cli.search.vocabulary import count_vocabulary
from minitron_cli.spec.axes import COUNTED_AXES, SCORED_AXES
from minitron_cli.training import preflight
from minitron_cli.training.options import Options as TrainingOptions

_KEEP = TrainingOptions(verb="distill", student="", data=(), output="").keep
FIRST_SHARE = 4  # every refined shape is first given this part of its tokens (see search/refine)


def cost(request: SearchRequest) -> dict[str, Any]:
    """Tokens, FLOPs, memory of a device and disk, as if every shape were the largest and none given up.

    Cuts of one axis, which weigh the axes, count as the source. Timing is not counted. Memory is that of one sequence
    at a time in bfloat16; saved steps of the trainings are part of the disk.
    """
    source = open_checkpoint(request.model)
    check_request(source, request)
    count_vocabulary(source, request)
    shapes = enumerate_shapes(source, request)
    seq_len, lines = window_length(source, request), source.family.expected(source.config)
    student, teacher = (preflight.size_of_shape(lines, shape, seq_len) for shape in (shapes[0].shape, source.shape))
    cut = (*SCORED_AXES, *COUNTED_AXES)
    axes = {axis for found in shapes for axis in cut if found.shape.get(axis) != source.shape.get(axis)}
    measured, refined = min(request.measure, len(shapes)), min(request.refine, len(shapes))
    rounds = [refine_steps(tokens, request.batch, seq_len) for tokens in _rounds(request)]
    trained = sum(rounds) * request.batch * seq_len * refined
    passes = [(teacher, 1 + len(axes)), (student, measured + refined * len(rounds))]
    read = request.eval_windows * seq_len
    item = source.num_bytes / teacher.parameters
    need = preflight.memory(
        student, [teacher], tokens=seq_len, world=1, item=2, teacher_item=2, shard_teacher=False, checkpointing=False
    )
    return {
        "shapes": len(shapes),
        "cuts": len(axes) + measured,
        "trained_tokens": trained,
        "tokens": trained + read * sum(n for _, n in passes),
        "flops": trained * preflight.training_flops(student, [teacher]) + read * sum(s.flops * n for s, n in passes),
        "memory_bytes": need.total() if refined else round(item * teacher.parameters),
        "disk_bytes": round(item * (len(axes) * teacher.parameters + measured * student.parameters))
        + refined * len(rounds) * preflight.disk(student, _KEEP, 4),
    }


def _rounds(request: SearchRequest) -> list[int]:
    return [request.refine_tokens // FIRST_SHARE, request.refine_tokens] if request.refine else []


def refine_steps(tokens: int, batch: int, seq_len: int) -> int:
    """Updates in a budget of tokens: at least one."""
    return max(1, tokens // (batch * seq_len))
