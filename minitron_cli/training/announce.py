"""Say what a run will do, and refuse what will not fit."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from minitron_cli.checkpoint.disk import need_space
from minitron_cli.data.order import Order
from minitron_cli.hf.devices import choose_dtype, dtype_name
from minitron_cli.hf.memory import free_memory
from minitron_cli.hf.process_group import World
from minitron_cli.training import preflight
from minitron_cli.training.prepare import Prepared


def announce(ready: Prepared, world: World, say: Callable[[str], None]) -> None:
    """Print sizes, tokens, device, memory and place."""
    for line in _lines(ready, world):
        say(line)
    need, free = memory(ready, world), free_memory(world.device)
    say(f"memory: about {need.total() / 1e9:.2f} GB a device, {free / 1e9:.1f} GB free; output: {ready.options.output}")


def check_room(ready: Prepared, world: World) -> None:
    """Raise when memory or disk will not do."""
    preflight.check_memory(memory(ready, world), free_memory(world.device), str(world.device))
    need_space(Path(ready.options.output), _disk(ready))


def facts(ready: Prepared, world: World) -> dict[str, Any]:
    """What the run will do and take, for a dry run: parameters, steps, tokens, FLOPs, bytes."""
    options, (student, *teachers) = ready.options, ready.sizes
    tokens, need = _tokens(ready), memory(ready, world)
    return {
        "output": options.output,
        "student parameters": student.parameters,
        "teacher parameters": [t.parameters for t in teachers],
        "steps": options.steps,
        "batch": options.batch,
        "micro-batch": ready.micro_batch,
        "sequence length": options.seq_len,
        "tokens": tokens,
        "FLOPs": tokens * ready.flops_per_token,
        "FLOPs per token": ready.flops_per_token,
        "device": f"{world.size} x {world.device}",
        **({"mix": str(ready.mixing)} if ready.mixing else {}),
        "memory per device": {**asdict(need), "total": need.total()},
        "disk": _disk(ready),
    }


def memory(ready: Prepared, world: World) -> preflight.Need:
    """Bytes that one device of `world` must hold during a step."""
    options, (student, *teachers) = ready.options, ready.sizes
    assert options.seq_len is not None
    dtype = choose_dtype(options.dtype, world.device)
    stored = dtype if options.teacher_dtype == "auto" else choose_dtype(options.teacher_dtype, world.device)
    elsewhere = options.teacher_device is not None and options.teacher_device != str(world.device)
    return preflight.memory(
        student,
        [] if elsewhere else teachers,
        tokens=ready.micro_batch * options.seq_len,
        world=world.size,
        item=dtype.itemsize,
        teacher_item=stored.itemsize,
        shard_teacher=options.shard_teacher,
        checkpointing=options.checkpoint_activations,
        accumulated=options.batch // world.size // ready.micro_batch > 1,
        device=world.device.type,
    )


def _disk(ready: Prepared) -> int:
    return preflight.disk(ready.sizes[0], ready.options.keep, 4)


def _tokens(ready: Prepared) -> int:
    options = ready.options
    assert options.steps is not None
    assert options.seq_len is not None
    return options.steps * options.batch * options.seq_len


def _lines(ready: Prepared, world: World) -> list[str]:
    options, (student, *teachers), tokens = ready.options, ready.sizes, _tokens(ready)
    assert options.steps is not None
    taught = "".join(f" <- {name} ({t.parameters:,} parameters)" for name, t in zip(options.teacher, teachers))
    passes = "streamed"
    if isinstance(ready.order, Order):
        passes = ", ".join(f"{epochs:.2f}" for epochs in ready.order.epochs(options.steps)) + " passes over the data"
    dtype = dtype_name(choose_dtype(options.dtype, world.device))
    origin = ", new weights" if options.from_scratch else ""
    lines = [
        f"{options.verb} {options.student} ({student.parameters:,} parameters{origin}){taught}",
        f"{options.steps:,} steps x {options.batch:,} sequences x {options.seq_len:,} tokens = {tokens:,} tokens "
        f"({passes}), {tokens * ready.flops_per_token:.3g} FLOPs",
        f"{world.size} x {world.device}, {dtype}; micro-batch {ready.micro_batch}, "
        f"{options.batch // world.size // ready.micro_batch} to a step; "
        f"{options.schedule}, lr {options.lr:g} -> {options.floor_lr():g}, warm-up {options.warmup}",
    ]
    return lines if ready.mixing is None else [*lines, f"mix updated every {ready.mixing.every} steps: {ready.mixing}"]
