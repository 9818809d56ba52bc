"""Dynamic batch loading: weights of a mixture that follow what a model has lost (Sheared-LLaMA, arXiv 2310.06694,
algorithm 1; LLM-Shearing's dynamic_loading_callback.py).
"""

from collections.abc import Sequence

import numpy as np

from minitron_cli.errors import MinitronError

ON_EXHAUSTED = ("error", "repeat", "drop-domain")


def reweighted(
    weights: Sequence[float], losses: Sequence[float], references: Sequence[float], rate: float, floor: float
) -> tuple[float, ...]:
    """One update of `weights` (domain,), which sum to 1 afterwards; a domain of weight 0 has left and stays at 0.

    excess = max(loss - reference, 0); w' is proportional to w exp(rate * excess); then (1 - floor) w' + floor / k over
    the k domains that are left. Losses and references are nats per token.
    """
    old = np.array(weights, np.float64)
    live = old > 0
    excess = np.maximum(np.array(losses, np.float64) - np.array(references, np.float64), 0.0)
    logits = np.where(live, np.log(np.where(live, old, 1.0)) + rate * excess, -np.inf)
    grown = np.exp(logits - logits.max())
    mixed = np.where(live, (1 - floor) * grown / grown.sum() + floor / live.sum(), 0.0)
    return tuple((mixed / mixed.sum()).tolist())


def without(weights: Sequence[float], domains: Sequence[int]) -> tuple[float, ...]:
    """The weights without some domains, the others in their proportions, summing to 1."""
    left = np.array(weights, np.float64)
    left[list(domains)] = 0.0
    if not left.any():
        raise MinitronError("every domain of the mix has run out", "give more --data, or --on-exhausted repeat")
    return tuple((left / left.sum()).tolist())
