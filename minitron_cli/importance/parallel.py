"""Several processes started by torchrun: each measures its share of the samples, and the running sums are added up."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from minitron_cli.errors import MinitronError


@dataclass(frozen=True, slots=True)
class World:
    """This process's place: `rank` of `size`."""

    rank: int = 0
    size: int = 1

    def share(self, samples: int) -> tuple[int, int]:
        """This rank's samples, [begin, end): contiguous, so that even and odd ones stay balanced."""
        if samples < self.size:
            raise MinitronError(
                f"{samples} samples cannot be shared by {self.size} processes", "start fewer processes, or add samples"
            )
        return self.rank * samples // self.size, (self.rank + 1) * samples // self.size

    def total(self, array: np.ndarray) -> np.ndarray:
        """The sum of every rank's array, in float64 on the CPU; the same on all."""
        if self.size == 1:
            return array
        import torch
        import torch.distributed as dist

        tensor = torch.from_numpy(array.copy())
        dist.all_reduce(tensor)
        return tensor.numpy()

    def totals(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: self.total(arrays[name]) for name in sorted(arrays)}


@contextmanager
def join() -> Iterator[World]:
    """Enter the group that torchrun describes in the environment; without it, be alone. Sums travel on the CPU."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World()
        return
    import torch.distributed as dist

    dist.init_process_group("gloo")
    try:
        yield World(int(os.environ["RANK"]), size)
    finally:
        dist.destroy_process_group()


def local_rank() -> int:
    """This process's number on its machine: which GPU is its own."""
    return int(os.environ.get("LOCAL_RANK", "0"))
