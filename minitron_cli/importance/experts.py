"""Statistics of what each expert of a mixture did, and of how tokens were routed."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from minitron_cli.hf.experts import Part
from minitron_cli.hf.readers import EXPERT, EXPERT_FFN, EXPERT_ROUTING
from minitron_cli.hf.samples import Batch


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
