"""How a step is sharded over many processes, and what they exchange; one process shards and exchanges nothing."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import nn

from minitron_cli.hf.process_group import World


def gather_bytes(world: World, values: bytes) -> list[bytes]:
    """The bytes of every rank, in the order of the ranks; all give as many."""
    if world.size == 1:
        return [values]
    mine = torch.frombuffer(bytearray(values), dtype=torch.uint8)
    found = [torch.empty_like(mine) for _ in range(world.size)]
    dist.all_gather(found, mine)
    return [bytes(one.tolist()) for one in found]


def shard(
    module: nn.Module, layers: Sequence[nn.Module], world: World, dtype: torch.dtype, exact: Sequence[nn.Module] = ()
) -> None:
    """FSDP2: each decoder layer is a group, the root holds the rest, so that both ends of a tied head are in one.

    Each of `exact` is a group whose parameters stay float32.
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
    for part in exact:
        fully_shard(part, mesh=mesh, mp_policy=MixedPrecisionPolicy(cast_forward_inputs=False))
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
