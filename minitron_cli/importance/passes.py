"""Set up a pass and run it in the mode that fits, resident or streamed."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from minitron_cli.checkpoint.architecture import stored_weights
from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.errors import MinitronError
from minitron_cli.hf.context import batch_size
from minitron_cli.hf.devices import choose_dtype, dtype_name
from minitron_cli.hf.process_group import World
from minitron_cli.hf.samples import Samples
from minitron_cli.hf.source import load_source
from minitron_cli.importance import resident, second_moments, stream
from minitron_cli.importance.execution import Execution, Mode, Say, Show, choose
from minitron_cli.importance.forecast import needs
from minitron_cli.importance.identity import pass_identity
from minitron_cli.importance.options import Options
from minitron_cli.importance.samples import draw
from minitron_cli.importance.snapshot import Progress, Snapshot
from minitron_cli.spec.counts import bytes_text
from minitron_cli.spec.shape import flops_per_token


@dataclass(frozen=True, slots=True)
class Planned:
    """A pass before it begins: its samples and what identifies them, its dtype, batch size and mode."""

    samples: Samples
    data: Mapping[str, Any]
    dtype: torch.dtype
    batch_size: int
    mode: Mode


def plan(checkpoint: Checkpoint, options: Options, world: World) -> Planned:
    """Draw the samples and choose dtype and mode; no weight is read, and only token files of the data are written."""
    device = world.device
    dtype = choose_dtype(options.dtype, device)
    samples, data = draw(checkpoint, options)
    size = min(batch_size(options.batch_size, samples.rows.shape[1], device.type), len(samples))
    begin, end = world.share(len(samples))
    seq_len, item = samples.rows.shape[1], dtype.itemsize
    need = needs(checkpoint, size * seq_len, (end - begin) * seq_len, item, options.second_moments)
    wanted = options.mode if not options.device_map else "resident"
    mode = choose(wanted, need, device, options.memory, checkpoint.family.whole)
    if mode.name == "stream" and options.wants_depth:
        raise MinitronError(
            f"depth curves need the whole model in memory, and the pass would stream ({mode.reason})",
            "leave --depth-block and --depth-greedy out, or use --mode resident or --device-map auto",
        )
    return Planned(samples, data, dtype, size, mode)


def prepare(
    checkpoint: Checkpoint, options: Options, output: Path, world: World, say: Say, show: Show
) -> tuple[Execution, Mode, Mapping[str, Any]]:
    """The planned pass with its snapshot and scratch files, its mode, and the identity of its sums."""
    planned = plan(checkpoint, options, world)
    identity = pass_identity(checkpoint.path, planned.data, dtype_name(planned.dtype))
    size, mode = planned.batch_size, planned.mode
    work = f"{mode.name} rank {world.rank} of {world.size}, batches of {size}" + " damage" * options.wants_damage
    snapshot = Snapshot(output.with_name(f".{output.name}.partial-{world.rank}"), {**identity, "work": work})
    scratch = stream.scratch_of(output, world.rank)
    moments = second_moments.SecondMoments(checkpoint, output, identity, world) if options.second_moments else None
    execution = Execution(
        checkpoint, planned.samples, world.device, planned.dtype, size, world, snapshot, scratch, say, show, moments,
        options.wants_damage,
    )  # fmt: skip
    return execution, mode, identity


def announce(execution: Execution, mode: Mode) -> None:
    """One line each for what is done and how: samples, arithmetic, memory."""
    checkpoint, samples, size = execution.checkpoint, execution.samples, execution.world.size
    per_token = flops_per_token(stored_weights(checkpoint), checkpoint.shape, samples.rows.shape[1])
    processes = f" in {size} processes" if size > 1 else ""
    execution.say(
        f"measuring {checkpoint.path} on {execution.device} in {dtype_name(execution.dtype)}{processes}: "
        f"{len(samples):,} samples, {samples.num_tokens:,} tokens, batches of {execution.batch_size}"
    )
    where = " with hidden states on disk" if mode.on_disk else ""
    memory = f"about {bytes_text(mode.memory)}, {per_token * samples.num_tokens / 1e12:,.1f} TFLOP to do"
    execution.say(f"{mode.name}{where} ({mode.reason}): {memory}")


def run_pass(execution: Execution, mode: Mode, model: Callable[[], Any]) -> Progress:
    """All of this process's samples through the model."""
    announce(execution, mode)
    if execution.moments is not None:
        execution.moments.begin()
    if mode.name == "stream":
        return stream.run(execution, mode.on_disk)
    return resident.run(execution, model())


def load(execution: Execution, options: Options) -> Any:
    """The resident model."""
    return load_source(
        execution.checkpoint,
        execution.dtype,
        execution.device,
        device_map=options.device_map,
        trust_remote_code=options.trust_remote_code,
    )
