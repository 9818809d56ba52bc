"""The oracle of trimming: the whole source model, made to compute what the pruned one should.

A dropped neuron or head keeps its weights but what it writes is read with zeros; a dropped layer is all zeros, so that
only the residual passes; a dropped expert is never routed to; a norm takes its mean over the kept coordinates only.
All of it follows from the axis tables, and none of it shares code with the gathering of bytes in `trim`.
"""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from minitron_cli.spec.axes import SCOPE, Dim, axes_of, positions, size
from minitron_cli.spec.family import CORRECTION, Family, Match, match
from minitron_cli.spec.plan import Plan


def masked_source(model: Any, family: Family, plan: Plan) -> Callable[[torch.Tensor], torch.Tensor]:
    """Mask `model`, the source loaded by transformers, in place; returns ids (batch, token) -> logits (.., vocab).

    Ids and logits are those of the target's vocabulary: the source reads the kept ids that they stand for.
    """
    saved = model.state_dict().keys()  # buffers too, where they are on disk
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in saved}
    parameters = {**dict(model.named_parameters()), **buffers}
    matches, unknown = match(family, parameters, plan.source.kinds)
    assert not unknown, f"the table does not know {unknown}"
    routers: dict[int, np.ndarray] = {}
    with torch.no_grad():
        for name, found in matches.items():
            layer = None if found.layer is None else plan.target_layer(found.layer)
            if found.layer is not None and layer is None:
                # A dropped layer adds nothing; what multiplies the whole stream lets it pass.
                parameters[name].fill_(1.0 if found.weight.dims == (((1,),),) else 0.0)
                continue
            if not found.weight.dims:
                continue
            _silence(parameters[name], found, plan, layer)
            if name.endswith(CORRECTION):  # else a dropped expert's own could outbid those that stay
                parameters[name][..., torch.as_tensor(_dropped(found.weight.dims[-1], plan, layer))] = -torch.inf
            dropped = _dropped(found.weight.dims[0], plan, layer)
            if len(found.weight.dims) == 1 and len(dropped) and name.endswith(".weight"):
                _norm_over_kept(model.get_submodule(name.removesuffix(".weight")), dropped)
            if len(found.weight.dims) == 2 and axes_of(found.weight.dims[0]) == ("expert",) and len(dropped):
                routers[id(parameters[name])] = dropped

    vocab = torch.as_tensor(plan.kept["vocab"]) if "vocab" in plan.kept else None

    def logits(ids: torch.Tensor) -> torch.Tensor:
        with torch.no_grad(), _Routing(routers):
            if vocab is None:
                return model(ids, use_cache=False).logits
            return model(vocab[ids], use_cache=False).logits[..., vocab]

    return logits


def _dropped(dim: Dim, plan: Plan, layer: int | None, expert: int | None = None) -> np.ndarray:
    """Positions of a dimension that do not survive."""
    kept = positions(dim, plan.source.sizes, plan.resolve(layer, expert))
    return np.setdiff1d(np.arange(size(dim, plan.source.sizes)), kept) if kept is not None else np.arange(0)


def _silence(parameter: torch.Tensor, found: Match, plan: Plan, layer: int | None) -> None:
    """Zero the columns that read a dropped unit of a layer, and the embedding of dropped channels."""
    last = found.weight.dims[-1]
    axes = axes_of(last)
    # Inside a block, hidden channels may be read again after what the norm has made of them (short convolutions).
    inside = {*SCOPE, "hidden"} if layer is not None else set(SCOPE)
    reads = len(found.weight.dims) > 1 and any(axis in inside for axis in axes)
    embeds = axes == ("hidden",) and axes_of(found.weight.dims[0]) == ("vocab",)
    if not reads and not embeds:
        return
    for part, expert in _by_expert(parameter, found, plan, layer):
        part[..., torch.as_tensor(_dropped(last, plan, layer, expert))] = 0


def _by_expert(
    parameter: torch.Tensor, found: Match, plan: Plan, layer: int | None
) -> Iterator[tuple[torch.Tensor, int | None]]:
    """The parameter as slices that share one set of kept indices, each with its target expert."""
    if found.expert is None and axes_of(found.weight.dims[0]) != ("expert",):
        yield parameter, None
        return
    assert layer is not None
    for source, part in enumerate(parameter) if found.expert is None else ((found.expert, parameter),):
        expert = plan.target_expert(layer, source)
        if expert is not None:
            yield part, expert


def _norm_over_kept(module: torch.nn.Module, dropped: np.ndarray) -> None:
    """Make a norm see the kept coordinates only; the dropped ones come out as zeros."""
    width = len(module.weight)  # type: ignore[arg-type]
    kept = torch.as_tensor(np.setdiff1d(np.arange(width), dropped))
    small = copy.deepcopy(module)
    for name, parameter in module.named_parameters(recurse=False):
        setattr(small, name, torch.nn.Parameter(parameter.detach()[kept]))
    if hasattr(small, "normalized_shape"):
        small.normalized_shape = (len(kept),)  # type: ignore[assignment]

    if hasattr(small, "group_size"):
        small.group_size = small.group_size * len(kept) // width  # type: ignore[operator,assignment]

    def forward(*inputs: torch.Tensor) -> torch.Tensor:
        narrow = small(*(x[..., kept] for x in inputs))  # what is normed, and its gate
        return narrow.new_zeros((*narrow.shape[:-1], width)).index_copy(-1, kept, narrow)

    module.forward = forward


class _Routing(TorchFunctionMode):
    """Gives dropped experts a router logit of minus infinity, wherever the router's weight is multiplied."""

    def __init__(self, routers: dict[int, np.ndarray]) -> None:
        super().__init__()
        self.routers = routers

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.nn.functional.linear and id(args[1]) in self.routers:
            result[..., torch.as_tensor(self.routers[id(args[1])])] = -torch.inf
        return result
