"""How a step is sharded over many processes, and what they exchange; one process shards and exchanges nothing."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

from minitron_cli.hf.parts import blocks_of
from minitron_cli.hf.process_group import World


def gather_bytes(world: World, values: bytes) -> list[bytes]:
    """The bytes of every rank, in the order of the ranks; all give as many."""
    if world.size == 1:
        return [values]
    mine = torch.frombuffer(bytearray(values), dtype=torch.uint8)
    found = [torch.empty_like(mine) for _ in range(world.size)]
    dist.all_gather(found, mine, group=world.group)
    return [bytes(one.tolist()) for one in found]


def mesh_of(world: World, replicate: int = 1) -> DeviceMesh | None:
    """How the ranks hold weights: in parts over all of them, or `replicate` copies of them, each over as many ranks.

    Neighbouring ranks share a copy. None for one process, which shards nothing.
    """
    if world.size == 1:
        return None
    if replicate == 1:
        return dist.init_device_mesh(world.device.type, (world.size,))
    return dist.init_device_mesh(
        world.device.type, (replicate, world.size // replicate), mesh_dim_names=("replicate", "shard")
    )


def shard(
    step: nn.Module, layers: Sequence[nn.Module], mesh: DeviceMesh | None, dtype: torch.dtype,
    exact: Sequence[nn.Module] = (),
) -> None:  # fmt: skip
    """FSDP2: each decoder layer is a group, the root holds the rest, so that both ends of a tied head are in one.

    Each of `exact` is a group whose parameters stay float32.
    Gradients are plain sums: the weights handed to the step already divide by the global token count, so FSDP's
    division by the world size is switched off. Inputs are not cast: the per-token weights have to stay float32.
    """
    if mesh is None:
        return
    low = dtype if dtype != torch.float32 else None
    policy = MixedPrecisionPolicy(param_dtype=low, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for layer in layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    for part in exact:
        fully_shard(part, mesh=mesh, mp_policy=MixedPrecisionPolicy(cast_forward_inputs=False))
    fully_shard(step, mesh=mesh, mp_policy=policy)
    register_fsdp_forward_method(step, "check_heads")
    for part in step.modules():
        if isinstance(part, FSDPModule):
            part.set_gradient_divide_factor(1.0)
            if mesh.device_type == "cpu":
                part.set_force_sum_reduction_for_comms(True)


class Gathered(nn.Module):
    """Wraps a frozen model whose weights are sharded: a call made through it finds embedding and head gathered.

    The head stays gathered until `reshard`, for the loss that reads it; each layer is gathered for its own forward.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, call: Callable[..., Any], *args: Any) -> Any:
        return call(*args)

    def reshard(self) -> None:
        """Free what is gathered."""
        raise AssertionError("not sharded")  # FSDP puts its own method before this one


def shard_frozen(model: nn.Module, mesh: DeviceMesh) -> Gathered:
    """Shard all weights of a teacher. Its embedding is a group of its own, but where the head is tied to it."""
    for layer in blocks_of(model):
        fully_shard(layer, mesh=mesh)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()  # type: ignore[operator]
    if embedding.weight is not head.weight:
        fully_shard(embedding, mesh=mesh)
    around = Gathered(model)
    fully_shard(around, mesh=mesh)
    return around


def release(step: nn.Module) -> None:
    """Free the gathered weights of a sharded step, so that it gathers them again after they have changed."""
    if isinstance(step, FSDPModule):
        step.reshard()


def sync_gradients(module: nn.Module, on: bool) -> None:
    """Reduce gradients in the coming backward, or keep them local until the last micro-batch."""
    switch = getattr(module, "set_requires_gradient_sync", None)
    if switch is not None:
        switch(on)
