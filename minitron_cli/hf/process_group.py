"""One process or many: the rank and device of this one, and reductions over all."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard

from minitron_cli.errors import MinitronError
from minitron_cli.hf.devices import choose_device

CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class World:
    """This process's place: `rank` of `size`, the device it computes on, and how many of them are on this machine.

    The ranks communicate in `group` (None: torch's default one). One process alone has joined no group.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = CPU
    local: int = 1
    group: dist.ProcessGroup | None = None

    @property
    def first(self) -> bool:
        """Whether this process prints and writes files for all."""
        return self.rank == 0

    def share(self, count: int) -> tuple[int, int]:
        """This rank's part [begin, end) of `count` samples: contiguous, so that even and odd ones stay balanced."""
        if count < self.size:
            raise MinitronError(
                f"{count} samples cannot be shared by {self.size} processes", "start fewer processes, or add samples"
            )
        return self.rank * count // self.size, (self.rank + 1) * count // self.size

    def sum(self, values: Tensor) -> Tensor:
        """Sum a tensor over the ranks in place, on the device where it is."""
        if self.size > 1:
            dist.all_reduce(values, group=self.group)
        return values

    def sum_array(self, array: np.ndarray) -> np.ndarray:
        """The sum of every rank's array, on the CPU and in the array's type; the same on all ranks."""
        return array if self.size == 1 else self.sum(torch.from_numpy(array.copy())).numpy()

    def sum_arrays(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """`sum_array` of each, in the order of their names, which must be the same on all ranks."""
        return {name: self.sum_array(arrays[name]) for name in sorted(arrays)}

    def agree(self, tokens: int, stop: bool) -> tuple[int, bool]:
        """The ranks' token counts summed, and whether any rank was told to stop: one reduction, on the CPU."""
        both = self.sum(torch.tensor([tokens, int(stop)], dtype=torch.int64))
        return int(both[0]), bool(both[1])

    def apart(self) -> "World":
        """The same ranks with a group of their own on the CPU, for another thread to speak in (a collective)."""
        return self if self.size == 1 else replace(self, group=dist.new_group(backend="gloo"))

    def barrier(self) -> None:
        """Wait for every rank."""
        self.sum(torch.zeros(1))


@contextmanager
def join(device_name: str) -> Iterator[World]:
    """Enter the process group that torchrun describes in the environment; without torchrun, be alone."""
    device = choose_device(device_name)
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if size == 1:
        yield World(0, 1, device)
        return
    # Both backends: tokens and the stop flag travel on the CPU, so that agreeing on them never waits for the GPU.
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        yield World(rank, size, device, int(os.environ.get("LOCAL_WORLD_SIZE", size)))
    finally:
        dist.destroy_process_group()


def own_part(tensor: Tensor) -> tuple[Tensor, int]:
    """This rank's part of a tensor, and the flat index of its first element; all of one that is not sharded.

    Parts are cut along the first dimension, over the last dimension of the mesh; over the others they are copies.
    """
    if not isinstance(tensor, DTensor):
        return tensor.detach(), 0
    *copies, last = tensor.placements
    assert [last, *copies] == [Shard(0), *[Replicate()] * len(copies)], f"placed as {tensor.placements}"
    local, mesh = tensor.to_local().detach(), tensor.device_mesh
    along = mesh.ndim - 1
    rows = -(-tensor.shape[0] // mesh.size(along))  # every rank but the last ones has as many
    first = min(rows * mesh.get_local_rank(along), tensor.shape[0])
    return local, first * (tensor.numel() // max(1, tensor.shape[0]))


def is_first_copy(tensor: Tensor, world: World) -> bool:
    """Whether this rank's part of a tensor is one to write down: what is not sharded is the first rank's."""
    if not isinstance(tensor, DTensor):
        return world.first
    coordinate = tensor.device_mesh.get_coordinate()
    assert coordinate is not None
    return not any(coordinate[:-1])
