"""How a pass is run: on what samples, where, in which arithmetic; whole or layer by layer, by what memory there is."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.errors import MinitronError
from minitron_cli.hf.memory import free_host_memory, free_memory
from minitron_cli.hf.process_group import World
from minitron_cli.hf.samples import Samples
from minitron_cli.importance.forecast import Needs
from minitron_cli.importance.second_moments import SecondMoments
from minitron_cli.importance.snapshot import Snapshot
from minitron_cli.spec.counts import bytes_text

Say = Callable[[str], None]
Show = Callable[[float, float], None]  # fraction done, tokens per second


@dataclass(frozen=True, slots=True)
class Execution:
    """Samples to send through a checkpoint, the device and dtype, and callbacks that report progress."""

    checkpoint: Checkpoint
    samples: Samples
    device: torch.device
    dtype: torch.dtype
    batch_size: int
    world: World
    snapshot: Snapshot
    scratch: Path  # for hidden states that do not fit in memory
    say: Say
    show: Show
    moments: SecondMoments | None = None
    damage: bool = False  # whether the absence of each expert is measured

    @property
    def share(self) -> tuple[int, int]:
        return self.world.share(len(self.samples))


@dataclass(frozen=True, slots=True)
class Mode:
    """The way chosen, and why. `on_disk`: streamed hidden states are mapped from files, not held."""

    name: str
    on_disk: bool
    memory: int  # bytes on the device, estimated
    reason: str


def choose(wanted: str, need: Needs, device: torch.device, limit: int | None = None, whole: str = "") -> Mode:
    """The resident model where it fits, else streaming; its states go to disk where they would fill half of memory.

    `whole` says why the model cannot be streamed, if it cannot.
    """
    memory = limit or free_memory(device)
    host = min(limit or free_host_memory(), free_host_memory())
    resident, on_disk = need.resident, need.states > host // 2
    streamed = need.streamed + (0 if on_disk or device.type == "cuda" else need.states)
    if wanted == "resident" or (wanted == "auto" and resident <= memory * 0.9):
        return Mode("resident", False, resident, "asked for" if wanted != "auto" else "the model fits")
    if whole:
        raise MinitronError(
            f"this model cannot be streamed: {whole}; whole it takes {bytes_text(resident)}",
            "use --mode resident, with a smaller --batch-size or --dtype bfloat16 where it does not fit",
        )
    if wanted == "auto" and streamed > memory:
        raise MinitronError(
            f"even one block at a time takes {bytes_text(streamed)} and {device} has {bytes_text(memory)} free",
            "use a smaller --batch-size or --dtype bfloat16, or --mode stream to try all the same",
        )
    reason = (
        "asked for" if wanted != "auto" else f"{bytes_text(resident)} do not fit in nine tenths of {bytes_text(memory)}"
    )
    return Mode("stream", on_disk, streamed, reason)
