"""Say what a run will do, and refuse what will not fit."""

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from minitron_cli.checkpoint.disk import need_space
from minitron_cli.checkpoint.rewrap import room
from minitron_cli.data.order import Order
from minitron_cli.errors import MinitronError
from minitron_cli.hf.devices import choose_dtype, dtype_name
from minitron_cli.hf.memory import free_host_memory, free_memory
from minitron_cli.hf.process_group import World
from minitron_cli.spec.counts import bytes_text
from minitron_cli.training import preflight
from minitron_cli.training.cached_logits.store import Recording
from minitron_cli.training.prepare import Prepared
from minitron_cli.training.stretches import Stretch

_LARGEST_BLOCK = 256 << 20  # bytes that a process reads, copies or writes at a time, and has in flight


def announce(ready: Prepared, world: World, say: Callable[[str], None]) -> None:
    """Print sizes, tokens, device, memory and place."""
    for line in _lines(ready, world):
        say(line)
    need, free = memory(ready, world), available(world)
    say(f"memory: about {need.total() / 1e9:.2f} GB a device, {free / 1e9:.1f} GB free; output: {ready.options.output}")


def settle(ready: Prepared, world: World, agree: Callable[[bool], bool] = bool) -> Prepared:
    """Decide what was left open: gradients accumulate whole on every device where they fit, else sharded; checkpoints
    are written in the background where the host has room for a copy and does not compute the steps itself.

    `agree` turns "does not fit on this rank" into "does not fit on some rank".
    """
    if ready.options.gradients == "auto":
        whole = _with(ready, gradients="whole")
        ready = _with(ready, gradients="sharded") if agree(memory(whole, world).total() > available(world)) else whole
    if ready.options.async_save is None:
        copying = _with(ready, async_save=True)
        busy = world.device.type == "cpu"
        ready = _with(ready, async_save=False) if busy or agree(_lacks_host(copying, world)) else copying
    return ready


def available(world: World) -> int:
    """Bytes that a rank can allocate now on the device that it computes on; ranks on the CPU share the host's."""
    free = free_memory(world.device)
    return free // world.local if world.device.type == "cpu" else free


def check_room(ready: Prepared, world: World) -> None:
    """Raise when memory, on the device and on the host, or disk will not do."""
    free = available(world)
    if memory(ready, world).total() > free:
        preflight.refuse(memory(ready, world), free, str(world.device), _remedies(ready, world, free))
    lacks = _lacks_host(ready, world)
    if lacks and ready.options.async_save and not _lacks_host(_with(ready, async_save=False), world):
        raise MinitronError(
            f"--async-save copies what it writes, {_copy(ready, world) / 1e9:.1f} GB of each process, and this machine "
            f"has {free_host_memory() / 1e9:.1f} GB free",
            "leave it out, and training waits while a checkpoint is written; --no-preflight tries anyway",
        )
    if lacks:
        first, _ = host_memory(ready, world)
        raise MinitronError(
            f"the first process holds the finished student whole in host memory, {first / 1e9:.1f} GB, and this "
            f"machine has {free_host_memory() / 1e9:.1f} GB free",
            "free memory, or --no-preflight: the run's checkpoints are kept, and --export-step exports the last one",
        )
    need_space(Path(ready.options.output), _disk(ready))


def host_memory(ready: Prepared, world: World) -> tuple[int, int]:
    """Bytes of host memory of the first process and of each other one, at the most and beside the interpreter.

    A process reads its part of the weights in blocks, and saves it in blocks or from a copy; where transformers
    converts a weight it is whole for a moment. Each gathers the student whenever tasks grade it, and the first the
    finished one, which beside other ranks it loads again on the CPU to compare. On a CPU the step is there too.
    """
    student = ready.sizes[0]
    reading = _LARGEST_BLOCK + (student.layer * 4 if "expert" in student.shape else 0)
    step = memory(ready, world).total() if world.device.type == "cpu" else 0
    at_work = step + (_copy(ready, world) if ready.options.async_save else 0)
    graded = student.parameters * ready.export_dtype.itemsize if ready.options.eval_tasks else 0
    whole = student.parameters * (ready.export_dtype.itemsize + (4 if world.size > 1 or step else 0))
    weights = -(-student.parameters // world.size) * 4 if step else 0  # the optimizer has been let go
    return max(reading, at_work + graded, weights + whole), max(reading, at_work + graded)


def _lacks_host(ready: Prepared, world: World) -> bool:
    """Whether the processes on this machine need more host memory than is free."""
    first, others = host_memory(ready, world)
    return first + (world.local - 1) * others > free_host_memory()


def _copy(ready: Prepared, world: World) -> int:
    """Bytes that a process saves: its part of the weights, and of the moments of those that are trained."""
    return -(-_saved(ready) // (world.size // ready.options.replicate))


def _saved(ready: Prepared) -> int:
    """Bytes of a saved step."""
    return 4 * ready.sizes[0].parameters + 8 * ready.trained


def _with(ready: Prepared, **changes: Any) -> Prepared:
    return replace(ready, options=replace(ready.options, **changes))


def _one_row(ready: Prepared) -> Prepared:
    """The same run with --micro-batch 1."""
    return replace(ready, stretches=tuple(replace(stretch, micro_batch=1) for stretch in ready.stretches))


def _remedies(ready: Prepared, world: World, free: int) -> dict[str, int]:
    """Options that make a step fit, and the bytes that it then needs."""
    tried = {
        "--gradients sharded": _with(ready, gradients="sharded"),
        "--micro-batch 1": _one_row(ready),
        "--checkpoint-activations": _with(ready, checkpoint_activations=True),
        "--shard-teacher": _with(ready, shard_teacher=world.size > 1 and not ready.options.teacher_device),
    }
    tried["--micro-batch 1 --checkpoint-activations"] = _one_row(tried["--checkpoint-activations"])
    needs = {words: memory(changed, world).total() for words, changed in tried.items()}
    return {words: need for words, need in needs.items() if need <= free}


def facts(ready: Prepared, world: World) -> dict[str, Any]:
    """What the run will do and take, for a dry run: parameters, steps, tokens, FLOPs, bytes."""
    options, (student, *teachers) = ready.options, ready.sizes
    *before, last = ready.stretches
    need = memory(ready, world)
    return {
        "output": options.output,
        "student parameters": student.parameters,
        **({"trained parameters": ready.trained} if ready.trained != student.parameters else {}),
        "teacher parameters": [t.parameters for t in teachers],
        **({"served teacher": f"{served}, the top {served.top_k}"} if (served := ready.models.served) else {}),
        **(
            {"recorded teacher": f"{said.path}, {said.header} of each token"}
            if (said := ready.models.recording)
            else {}
        ),
        "steps": options.steps,
        **({"phases before": [f"{s}, micro-batch {s.micro_batch}" for s in before]} if before else {}),
        "batch": last.batch,
        "micro-batch": last.micro_batch,
        "sequence length": last.seq_len,
        "tokens": sum(stretch.tokens for stretch in ready.stretches),
        "FLOPs": sum(stretch.flops for stretch in ready.stretches),
        "FLOPs per token": last.flops_per_token,
        "device": f"{world.size} x {world.device}",
        **({"mix": str(ready.mixing)} if ready.mixing else {}),
        **({"vocabulary": dict(zip(("student", "teacher"), sizes))} if (sizes := _vocabularies(ready)) else {}),
        "gradients": options.gradients,
        "saving": "while the steps go on" if options.async_save else "between the steps",
        "memory per device": {**asdict(need), "total": need.total()},
        "host memory": dict(zip(("first process", "each other one"), host_memory(ready, world))),
        "disk": _disk(ready),
        **({"mirror": {"a step": _saved(ready)}} if options.mirror is not None else {}),
    }


def memory(ready: Prepared, world: World) -> preflight.Need:
    """Bytes that one device of `world` must hold during a step, the largest of the run."""
    return max((_memory(ready, stretch, world) for stretch in ready.stretches), key=preflight.Need.total)


def _memory(ready: Prepared, stretch: Stretch, world: World) -> preflight.Need:
    options, (student, *teachers) = ready.options, ready.sizes
    dtype = choose_dtype(options.dtype, world.device)
    stored = dtype if options.teacher_dtype == "auto" else choose_dtype(options.teacher_dtype, world.device)
    elsewhere = options.teacher_device is not None and options.teacher_device != str(world.device)
    return preflight.memory(
        student,
        [] if elsewhere else teachers,
        tokens=stretch.micro_batch * stretch.seq_len,
        world=world.size,
        item=dtype.itemsize,
        teacher_item=stored.itemsize,
        shard_teacher=bool(options.shard_teacher),
        checkpointing=options.checkpoint_activations,
        accumulated=stretch.batch // world.size // stretch.micro_batch > 1,
        device=world.device.type,
        gradients=options.gradients,
        copies=options.replicate,
        trained=ready.trained,
        graded=choose_dtype("auto", world.device).itemsize if options.eval_tasks else 0,
    )


def _disk(ready: Prepared) -> int:
    student, options = ready.sizes[0], ready.options
    kept = options.keep + (options.mirror is not None)  # a step stays while it is copied
    more = len(ready.export_steps) + (ready.shear is not None)  # students exported on the way, and the masked one
    exported = more * student.parameters * ready.export_dtype.itemsize
    return preflight.disk(student, kept, 4) + room(ready.models.student, 4 * student.parameters) + exported


def _lines(ready: Prepared, world: World) -> list[str]:
    options, (student, *teachers), last = ready.options, ready.sizes, ready.stretches[-1]
    tokens, flops = (sum(getattr(s, name) for s in ready.stretches) for name in ("tokens", "flops"))
    assert options.steps is not None
    taught = "".join(f" <- {name} ({t.parameters:,} parameters)" for name, t in zip(options.teacher, teachers))
    taught += f" <- {served}, the top {served.top_k}" if (served := ready.models.served) else ""
    taught += f" <- {_recorded(said)}" if (said := ready.models.recording) else ""
    passes = "streamed"
    if isinstance(ready.order, Order):
        passes = ", ".join(f"{epochs:.2f}" for epochs in ready.order.epochs(options.steps)) + " passes over the data"
    dtype = dtype_name(choose_dtype(options.dtype, world.device))
    origin = ", new weights" if options.from_scratch else ""
    origin += f", {ready.trained:,} of them trained" if ready.trained != student.parameters else ""
    lines = [
        f"{options.verb} {options.student} ({student.parameters:,} parameters{origin}){taught}",
        f"{', then '.join(map(str, ready.stretches))} = {tokens:,} tokens ({passes}), {flops:.3g} FLOPs",
        f"{world.size} x {world.device}, {dtype}; micro-batch {last.micro_batch}, "
        f"{last.batch // world.size // last.micro_batch} to a step; "
        f"{options.schedule}, lr {options.lr:g} -> {options.floor_lr():g}, warm-up {options.warmup}",
    ]
    if options.mirror is not None:
        lines.append(f"mirror: {options.mirror}, {bytes_text(_saved(ready))} a step")
    if sizes := _vocabularies(ready):
        lines.append(
            f"the student has {sizes[0]:,} of the teacher's {sizes[1]:,} tokens: each reads the text in its own, what "
            "both spell alike is learned from the teacher, the rest from the text"
        )
    return lines if ready.mixing is None else [*lines, f"mix updated every {ready.mixing.every} steps: {ready.mixing}"]


def _recorded(said: Recording) -> str:
    """A recorded teacher in words: where it is, and what it says."""
    return f"{said.path}, {said.header} of each token"


def _vocabularies(ready: Prepared) -> tuple[int, int] | None:
    """Tokens of the student and of the first teacher with a larger vocabulary, None where there is none."""
    return next(((len(one.image), one.whole_size) for one in ready.models.readers if one is not None), None)
