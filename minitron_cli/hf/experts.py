"""Mixtures of experts: fused Parameters have no linear layer to hook, so their forward is recomputed.

It follows the contract of transformers' experts interface (`transformers.integrations.moe`): the experts of a layer
are one module with `gate_up_proj` / `up_proj` and `down_proj` stacked over experts, and flags for their layout.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from minitron_cli.errors import MinitronError

FLAGS = ("has_gate", "has_bias", "is_transposed", "down_proj")


@dataclass(frozen=True, slots=True)
class Part:
    """What one expert did with the n tokens it was given."""

    tokens: Tensor  # (n,) int64, ascending: index into the flattened batch
    inner: Tensor  # (n, expert_ffn), the input of its down projection
    gate: Tensor  # (n,) float32, the routing weight
    output_norm: Tensor  # (n,) float32, l2 of the output
    norm: Tensor  # (n,) float32, l2 of routing weight x output


def routed(
    experts: Any,
    hidden: Tensor,
    index: Tensor,
    weights: Tensor,
    record: Callable[[Part], None],
    outputs: Tensor | None = None,
) -> Tensor:
    """The experts' output, each recorded in turn: hidden (token, hidden), index and weights (token, active).

    `outputs` (token, active, hidden) takes what each expert gave, before the routing weight.
    """
    missing = [name for name in FLAGS if not hasattr(experts, name)]
    if missing:
        raise MinitronError(
            f"{type(experts).__name__} does not follow transformers' experts interface (no {', '.join(missing)})",
            "this mixture of experts cannot be measured with this transformers version",
        )
    output = torch.zeros(hidden.shape, dtype=torch.float32, device=hidden.device)
    order = index.flatten().argsort(stable=True)  # by expert; tokens ascend inside each
    counts = torch.bincount(index.flatten(), minlength=len(experts.down_proj)).tolist()
    gates = weights.flatten()[order].split(counts)
    for expert, places in enumerate(order.split(counts)):
        tokens = places // index.shape[-1]
        inner, out = _expert(experts, expert, hidden[tokens])
        weighted = out * gates[expert][:, None].to(out.dtype)
        output.index_add_(0, tokens, weighted.float())
        if outputs is not None:
            outputs.flatten(0, 1)[places] = out
        norms = (torch.linalg.vector_norm(x, dim=-1, dtype=torch.float32) for x in (out, weighted))
        record(Part(tokens, inner, gates[expert].float(), *norms))
    return output.to(hidden.dtype)


def _expert(experts: Any, expert: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """One expert on its tokens: (n, hidden) -> input of its down projection (n, expert_ffn), output (n, hidden)."""
    name = "gate_up_proj" if experts.has_gate else "up_proj"
    up = _linear(experts, name, expert, x)
    inner = experts._apply_gate(up) if experts.has_gate else experts.act_fn(up)
    out = _linear(experts, "down_proj", expert, inner)
    return inner, experts.post_expert_norm(out) if getattr(experts, "has_post_expert_norm", False) else out


def _linear(experts: Any, name: str, expert: int, x: Tensor) -> Tensor:
    weight = getattr(experts, name)[expert]
    bias = getattr(experts, f"{name}_bias")[expert] if experts.has_bias else None
    return F.linear(x, weight.T if experts.is_transposed else weight, bias)


def set_output_weight(experts: Any, expert: int, weight: Tensor) -> None:
    """Give one expert another down projection, (hidden, expert_ffn)."""
    with torch.no_grad():
        experts.down_proj[expert].copy_(weight.T if experts.is_transposed else weight)
