"""Mixtures of experts: fused Parameters have no linear layer to hook, so their forward is recomputed.

It follows the contract of transformers' experts interface (`transformers.integrations.moe`): the experts of a layer
are one module with `gate_up_proj` / `up_proj` and `down_proj` stacked over experts, and flags for their layout.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from minitron_cli.errors import MinitronError
from minitron_cli.hf.readers import EXPERT, EXPERT_FFN, EXPERT_ROUTING
from minitron_cli.importance.statistics import Batch

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


def part_statistics(part: Part, batch: Batch) -> dict[str, Tensor]:
    """Statistics of one expert and its neurons, each (batch, 3, channel) float64, and its part of the routing.

    A token that was not routed to the expert counts as zero for it, so that usage is part of every score: "expert" is
    the routed output's norm, "expert_ffn" the down projection's input. "expert_routing" (batch, 4, 1) holds plain sums
    over the tokens that were routed to it, as `ROUTED` names them.
    """
    members, tokens = members_of(part.tokens, batch), _valid_tokens(batch)
    found = {axis: _statistics(members, values.float(), tokens) for axis, values in _channels(part)}
    totals = torch.stack([torch.ones_like(part.gate), part.gate, part.output_norm, part.norm], dim=1)
    return found | {EXPERT_ROUTING: (members @ totals).double()[:, :, None]}


def join_parts(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The statistics of all experts of a layer, side by side in the order of the experts."""
    return {axis: torch.cat([part[axis] for part in parts], dim=-1) for axis in (EXPERT, EXPERT_ROUTING, EXPERT_FFN)}


def _channels(part: Part) -> Iterator[tuple[str, Tensor]]:
    yield EXPERT, part.norm[:, None]
    yield EXPERT_FFN, part.inner


def _statistics(members: Tensor, x: Tensor, tokens: Tensor) -> Tensor:
    """members (batch, n) of 0 and 1, x (n, channel), tokens (batch, 1) -> (batch, 3, channel) float64."""
    absolute, square, plain = ((members @ v).double() for v in (x.abs(), x * x, x))
    mean = plain / tokens
    return torch.stack([absolute / tokens, square.sqrt(), (square / tokens - mean * mean).clamp_min_(0.0)], dim=1)


def members_of(tokens: Tensor, batch: Batch) -> Tensor:
    """Which sample each routed token belongs to; padding belongs to none: (batch, n) float32."""
    length = batch.ids.shape[1]
    row, place = tokens // length, tokens % length
    members = F.one_hot(row, len(batch.ids)).T.float()
    if batch.spans is not None:
        begin, end = torch.tensor(batch.spans, device=tokens.device).unbind(1)
        members = members * ((place >= begin[row]) & (place < end[row]))
    return members


def _valid_tokens(batch: Batch) -> Tensor:
    """(batch, 1) float64."""
    lengths = (
        [batch.ids.shape[1]] * len(batch.ids) if batch.spans is None else [end - begin for begin, end in batch.spans]
    )
    return torch.tensor(lengths, dtype=torch.float64, device=batch.ids.device)[:, None]
