"""A transformers model without memory behind its weights: to be sharded first, then filled (see fill.py).

Parameters are on the meta device; buffers (rotary frequencies, embedding scales) are made by the model's own
constructor and are real. So no list of what has to be computed again can be incomplete.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from minitron_cli.hf.quiet import quiet

Registered = Callable[[nn.Module, str, nn.Parameter], None]


def empty_model(
    config: Any, dtype: torch.dtype, trust_remote_code: bool = False, watch: Registered = lambda *one: None
) -> Any:
    """The causal LM of a transformers config, its parameters on the meta device and tied as the config says.

    `watch` is called with each parameter as a constructor makes it: the module, the name in it, and its value.
    """
    from transformers import AutoModelForCausalLM

    with quiet(), parameters_on_meta(watch):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=trust_remote_code)
    for pattern, other in model._get_dtype_plan(dtype).items():  # what from_pretrained keeps in float32
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if re.search(pattern.replace("*", ".*"), name):
                tensor.data = tensor.data.to(other)
    return model


@contextmanager
def parameters_on_meta(watch: Registered) -> Iterator[None]:
    """Within, a parameter that a module registers loses its memory at once: one at a time is real."""
    register = nn.Module.register_parameter

    def register_on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            watch(module, name, parameter)
            parameter = nn.Parameter(parameter.data.to("meta"), parameter.requires_grad)
        register(module, name, parameter)

    with patch.object(nn.Module, "register_parameter", register_on_meta):
        yield


def materialise(module: nn.Module, device: torch.device) -> None:
    """Give every meta tensor memory on `device`, its content undefined, and move the others there; ties stay tied.

    What is sharded gets memory for this rank's part alone.
    """
    groups: dict[int, list[tuple[nn.Module, str]]] = {}
    for owner in module.modules():
        for name, parameter in owner._parameters.items():
            if parameter is not None:
                groups.setdefault(id(parameter), []).append((owner, name))
    module._apply(_mover(device))
    for places in groups.values():
        owner, name = places[0]
        for other, alias in places[1:]:
            if other._parameters[alias] is not owner._parameters[name]:
                other._parameters[alias] = owner._parameters[name]


def _mover(device: torch.device) -> Callable[[Tensor], Tensor]:
    def move(tensor: Tensor) -> Tensor:
        return torch.empty_like(tensor, device=device) if tensor.is_meta else tensor.to(device)

    return move
