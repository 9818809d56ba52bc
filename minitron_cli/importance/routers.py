"""Router logits, and how a mixture's output changes without each expert: forward only, at the layer's own inputs."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from minitron_cli.errors import MinitronError
from minitron_cli.hf.experts import routed
from minitron_cli.hf.samples import Batch
from minitron_cli.importance.experts import members_of


def router_of(model: nn.Module, experts: str) -> Any:
    """The router beside the module `experts`: transformers' contract is hidden -> (logits, weights, index)."""
    found = [child for child in model.get_submodule(experts.rpartition(".")[0]).children() if hasattr(child, "top_k")]
    if len(found) != 1 or getattr(found[0], "weight", None) is None:
        raise MinitronError(
            f"the router beside {experts} cannot be told from {len(found)} modules that choose experts",
            "this mixture of experts cannot be measured with this transformers version",
        )
    return found[0]


def logit_gram(router: Any, hidden: Tensor, rows: slice, batch: Batch) -> Tensor:
    """Sum of l l^T over some samples' valid tokens: hidden (batch x token, hidden) -> (expert, expert) float64."""
    tokens = torch.arange(batch.ids.numel(), device=hidden.device)
    wanted = members_of(tokens, batch)[rows].sum(0) > 0
    logits = F.linear(hidden[wanted], router.weight, getattr(router, "bias", None)).double()
    return logits.T @ logits


def damage(
    experts: Any, router: Any, hidden: Tensor, index: Tensor, outputs: Tensor, output: Tensor, batch: Batch
) -> Tensor:
    """Squared change of the experts' output when each expert is dropped, over all tokens: (batch, 1, expert) float64.

    A dropped expert is never routed to: the router chooses anew among the others and weighs them as its family does.
    Only tokens that were routed to an expert notice its absence, so that each token is run through at most `active`
    more experts. hidden and output (token, hidden), index (token, active), outputs (token, active, hidden).
    """
    squares = torch.zeros(len(batch.ids), len(router.weight), dtype=torch.float64, device=hidden.device)
    members = members_of(torch.arange(len(hidden), device=hidden.device), batch).double()
    for slot in range(index.shape[1]):
        with _Without(router.weight, index[:, slot]):
            _, weights, other = router(hidden)
        same = other[:, :, None] == index[:, None, :]  # (token, new slot, old slot)
        known = same.any(-1)
        mixed = torch.einsum("tn,tno,toh->th", weights.float(), same.float(), outputs.float())
        fresh, place = (~known).nonzero(as_tuple=True)
        if len(fresh):
            gates = weights[fresh, place, None]
            mixed[fresh] += routed(experts, hidden[fresh], other[fresh, place, None], gates, lambda part: None).float()
        change = (mixed - output.float()).double().square().sum(-1)
        squares.scatter_add_(1, index[:, slot].expand(len(members), -1), members * change)
    return squares[:, None]


class _Without(TorchFunctionMode):
    """Gives one expert of each token a logit of minus infinity, where the router's weight is multiplied."""

    def __init__(self, weight: Tensor, dropped: Tensor) -> None:
        super().__init__()
        self.weight, self.dropped = weight, dropped

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is F.linear and args[1] is self.weight:
            return result.scatter(1, self.dropped[:, None], -torch.inf)
        return result
