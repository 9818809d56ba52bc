"""AdamW over float32 master weights, the guard on its updates, and the low-precision copy that a forward pass uses."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from minitron_cli.training.terms import ParamGroup

# The spike guard compares with the median of this many accepted norms, and waits until it has seen a few.
_WINDOW, _ENOUGH = 64, 8


def build(
    module: nn.Module, special: Sequence[ParamGroup], betas: tuple[float, float], eps: float, weight_decay: float
) -> torch.optim.AdamW:
    """AdamW in its fused form (one kernel on a GPU, one pass over memory on a CPU); matrices decay, vectors do not.

    The parameters of each group in `special` get an optimizer group of their own, with its settings and no decay.
    """
    apart = {id(p) for group in special for p in group.parameters}
    trained = [p for p in module.parameters() if p.requires_grad and id(p) not in apart]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
        *(
            {"params": list(g.parameters), "weight_decay": 0.0, "rate": g.rate, "maximize": g.maximize, "clip": g.clip}
            for g in special
        ),
    ]
    # The rate is set before each step.
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=0.0, betas=betas, eps=eps, fused=True)


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set every group's learning rate: `lr`, times the group's own factor where it has one."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("rate", 1.0)


def clip(optimizer: torch.optim.Optimizer, limit: float) -> Tensor:
    """Scale the gradients so that their global L2 norm is at most `limit`; returns the norm before, a scalar.

    A group with a limit of its own is clipped by itself and does not count in the norm that is returned.
    """
    together: list[Tensor] = []
    for group in optimizer.param_groups:
        if group.get("clip") is None:
            together += group["params"]
        else:
            nn.utils.clip_grad_norm_(group["params"], group["clip"])
    norm = nn.utils.clip_grad_norm_(together, limit)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def is_spike(norm: float, accepted: Sequence[float], factor: float | None) -> bool:
    """Whether a gradient norm is not finite, or exceeds `factor` times the median of the latest accepted ones."""
    if factor is None:
        return False
    return not math.isfinite(norm) or (len(accepted) >= _ENOUGH and norm > factor * median(accepted))


def remember(accepted: tuple[float, ...], norm: float, factor: float | None) -> tuple[float, ...]:
    """The accepted norms with one more, or none where there is no guard to need them."""
    return (*accepted, norm)[-_WINDOW:] if factor is not None else ()


# (ids (batch, token), weights (batch, token), ... of `rows.Inputs`) -> loss terms; trains or only measures.
Call = Callable[..., dict[str, Tensor]]


class _WithBackward(nn.Module):
    """Forward and backward as one call: a backward that runs layers again meets the same substituted weights."""

    def __init__(self, step: nn.Module) -> None:
        super().__init__()
        self.step = step

    def forward(self, *inputs: Any) -> dict[str, Tensor]:
        terms = self.step(*inputs)
        terms["loss"].backward()
        return {name: value.detach() for name, value in terms.items()}


def trainer(step: nn.Module, cast_to: torch.dtype | None, exact: Sequence[nn.Module] = ()) -> Call:
    """Forward and backward of a micro-batch; returns the detached terms.

    With `cast_to`, the float32 weights (but those of `exact`) are cast inside the graph: what FSDP's mixed precision
    does, for one process. Gradients reach the float32 weights and add up there.
    """
    return caller(_WithBackward(step), cast_to, exact)


def measurer(step: nn.Module, cast_to: torch.dtype | None, exact: Sequence[nn.Module] = ()) -> Call:
    """The forward pass alone, without a graph, in the same precision as training."""

    return torch.no_grad()(caller(step, cast_to, exact))


def caller(module: nn.Module, cast_to: torch.dtype | None, exact: Sequence[nn.Module] = ()) -> Call:
    """`module` as a function of (ids, weights), its parameters cast for the time of the call if that is asked."""
    spared = {id(p) for one in exact for p in one.parameters()}
    return module if cast_to is None else partial(_call_cast, module, cast_to, spared)


def _call_cast(module: nn.Module, dtype: torch.dtype, spared: set[int], *args: Any, **more: Any) -> dict[str, Tensor]:
    cast = {name: p.to(dtype) for name, p in module.named_parameters() if id(p) not in spared}
    return torch.func.functional_call(module, cast, args, more)
