"""Say at the start what a run will do, and refuse what will not fit."""

from collections.abc import Callable
from pathlib import Path

from minitron_cli.checkpoint.atomic import need_space
from minitron_cli.data.order import Order
from minitron_cli.data.stream import StreamOrder
from minitron_cli.training import preflight
from minitron_cli.training.distributed import World
from minitron_cli.training.inputs import Models
from minitron_cli.training.load import compute_dtype
from minitron_cli.training.metrics import available_memory
from minitron_cli.training.options import Options
from minitron_cli.training.preflight import Size, size_of


def announce(
    options: Options, models: Models, order: Order | StreamOrder, world: World, micro: int, *, check: bool,
    say: Callable[[str], None],
) -> None:  # fmt: skip
    """Print sizes, tokens, device, memory and place; with `check`, raise when memory or disk will not do."""
    assert options.seq_len is not None
    student = size_of(models.student, options.seq_len)
    teachers = [size_of(path, options.seq_len) for path in models.teachers]
    need = _memory(options, student, teachers, micro * options.seq_len, world)
    free = available_memory(world.device)
    for line in _lines(options, student, teachers, order, world, micro):
        say(line)
    say(f"memory: about {need.total() / 1e9:.2f} GB a device, {free / 1e9:.1f} GB free; output: {options.output}")
    if check:
        preflight.check_memory(need, free, str(world.device))
        need_space(Path(options.output), preflight.disk(student, options.keep, 4))


def _lines(
    options: Options, student: Size, teachers: list[Size], order: Order | StreamOrder, world: World, micro: int
) -> list[str]:
    assert options.steps is not None
    assert options.seq_len is not None
    tokens = options.steps * options.batch * options.seq_len
    flops = tokens * (3 * student.flops + sum(t.flops for t in teachers))
    taught = "".join(f" <- {name} ({t.parameters:,} parameters)" for name, t in zip(options.teacher, teachers))
    passes = "streamed"
    if isinstance(order, Order):
        passes = ", ".join(f"{epochs:.2f}" for epochs in order.epochs(options.steps)) + " passes over the data"
    dtype = str(compute_dtype(options.dtype, world.device)).removeprefix("torch.")
    origin = ", new weights" if options.from_scratch else ""
    accumulated = options.batch // world.size // micro
    return [
        f"{options.verb} {options.student} ({student.parameters:,} parameters{origin}){taught}",
        f"{options.steps:,} steps x {options.batch:,} sequences x {options.seq_len:,} tokens = {tokens:,} tokens "
        f"({passes}), {flops:.3g} FLOPs",
        f"{world.size} x {world.device}, {dtype}; micro-batch {micro}, {accumulated} to a step; "
        f"{options.schedule}, lr {options.lr:g} -> {options.floor_lr():g}, warm-up {options.warmup}",
    ]


def _memory(options: Options, student: Size, teachers: list[Size], tokens: int, world: World) -> preflight.Need:
    dtype = compute_dtype(options.dtype, world.device)
    stored = dtype if options.teacher_dtype == "auto" else compute_dtype(options.teacher_dtype, world.device)
    elsewhere = options.teacher_device is not None and options.teacher_device != str(world.device)
    return preflight.memory(
        student,
        [] if elsewhere else teachers,
        tokens=tokens,
        world=world.size,
        item=dtype.itemsize,
        teacher_item=stored.itemsize,
        shard_teacher=options.shard_teacher,
        checkpointing=options.checkpoint_activations,
        device=world.device.type,
    )
