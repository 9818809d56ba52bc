"""The work of one pass, as every mode of running it needs it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.hf.process_group import World
from minitron_cli.importance.estimate import Samples
from minitron_cli.importance.second_moments import SecondMoments
from minitron_cli.importance.snapshot import Snapshot

Say = Callable[[str], None]
Show = Callable[[float, float], None]  # fraction done, tokens per second


@dataclass(frozen=True, slots=True)
class Job:
    """Samples to send through a checkpoint, where, in what arithmetic, and whom to tell."""

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

    @property
    def share(self) -> tuple[int, int]:
        return self.world.share(len(self.samples))
