"""One process or many: who I am, what is agreed on each step, and how the step is sharded.

A single process joins no group and shards nothing; the functions below are then the identity.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from minitron_cli.errors import MinitronError


@dataclass(frozen=True, slots=True)
class World:
    """This process's place: `rank` of `size`, and the device it computes on."""

    rank: int
    size: int
    device: torch.device


ALONE = World(0, 1, torch.device("cpu"))


def choose_device(name: str) -> torch.device:
    """`auto` is this rank's GPU where there is one, else the CPU."""
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise MinitronError(f"--device {name!r} is no device", "use cpu, cuda or cuda:N") from error
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise MinitronError(
                f"--device {name}: no GPU is visible to torch", "use --device cpu, or install a CUDA build of torch"
            )
        device = torch.device("cuda", local if device.index is None or "LOCAL_RANK" in os.environ else device.index)
        if device.index >= torch.cuda.device_count():
            raise MinitronError(
                f"--device {device}: {torch.cuda.device_count()} GPUs are visible",
                "start at most one process per GPU (--nproc)",
            )
    return device


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
        yield World(rank, size, device)
    finally:
        dist.destroy_process_group()


def agree(world: World, tokens: int, stop: bool) -> tuple[int, bool]:
    """Sum the ranks' token counts, and stop if any of them was told to: the one all-reduce before a step."""
    if world.size == 1:
        return tokens, stop
    both = torch.tensor([tokens, int(stop)], dtype=torch.int64)
    dist.all_reduce(both)
    return int(both[0]), bool(both[1])


def total(world: World, values: Tensor) -> Tensor:
    """Sum a tensor over the ranks, in place."""
    if world.size > 1:
        dist.all_reduce(values)
    return values


def gather_bytes(world: World, values: bytes) -> list[bytes]:
    """The bytes of every rank, in the order of the ranks; all give as many."""
    if world.size == 1:
        return [values]
    mine = torch.frombuffer(bytearray(values), dtype=torch.uint8)
    found = [torch.empty_like(mine) for _ in range(world.size)]
    dist.all_gather(found, mine)
    return [bytes(one.tolist()) for one in found]


def barrier(world: World) -> None:
    """Wait for every rank."""
    if world.size > 1:
        dist.all_reduce(torch.zeros(1))


def shard(module: nn.Module, layers: Sequence[nn.Module], world: World, dtype: torch.dtype) -> None:
    """FSDP2: each decoder layer is a group, the root holds the rest, so that both ends of a tied head are in one.

    Gradients are plain sums: the weights handed to the step already divide by the global token count, so FSDP's
    division by the world size is switched off. Inputs are not cast: the per-token weights have to stay float32.
    """
    if world.size == 1:
        return
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    low = dtype if dtype != torch.float32 else None
    policy = MixedPrecisionPolicy(param_dtype=low, reduce_dtype=torch.float32, cast_forward_inputs=False)
    mesh = dist.init_device_mesh(world.device.type, (world.size,))
    for layer in layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(module, mesh=mesh, mp_policy=policy)
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.set_gradient_divide_factor(1.0)
            if world.device.type == "cpu":
                part.set_force_sum_reduction_for_comms(True)


def shard_frozen(backbone: nn.Module, layers: Sequence[nn.Module], world: World) -> None:
    """Shard a teacher's layers; its embedding and head stay whole on every rank, since the loss reads them directly."""
    if world.size == 1:
        return
    from torch.distributed.fsdp import fully_shard

    mesh = dist.init_device_mesh(world.device.type, (world.size,))
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    inside = {p for layer in layers for p in layer.parameters()}
    fully_shard(backbone, mesh=mesh, ignored_params={p for p in backbone.parameters() if p not in inside})


def sync_gradients(module: nn.Module, on: bool) -> None:
    """Reduce gradients in the coming backward, or keep them local until the last micro-batch."""
    switch = getattr(module, "set_requires_gradient_sync", None)
    if switch is not None:
        switch(on)
