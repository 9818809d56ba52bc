"""Hard concrete masks (arXiv 1712.01312) with the constants of Sheared-LLaMA's released code (arXiv 2310.06694).

A mask z in [0, 1] is a stretched and clipped concrete variable: with u ~ U(0, 1) and its log-alpha a, which is trained,
s = sigmoid((ln u - ln(1 - u) + a) / BETA), z = clip(s (HIGH - LOW) + LOW, 0, 1). 0 and 1 themselves are probable.
"""

import math

import torch
from torch import Tensor

BETA, LOW, HIGH = 2 / 3, -0.1, 1.1
LIMIT = math.log(100)  # of |log-alpha|; masks start there, all but open
EPSILON = 1e-6  # draws and probabilities keep this distance from 0 and 1
_SHARPNESS = 0.8  # of the value that a mask settles at


def sample(log_alpha: Tensor, uniform: Tensor) -> Tensor:
    """Masks for draws `uniform` from U(EPSILON, 1 - EPSILON), of the shape of `log_alpha`."""
    s = torch.sigmoid((uniform.log() - (-uniform).log1p() + log_alpha) / BETA)
    return (s * (HIGH - LOW) + LOW).clamp(0, 1)


def alive(log_alpha: Tensor) -> Tensor:
    """The probability that a mask is not 0: sigmoid(a - BETA ln(-LOW / HIGH)) = sigmoid(a + 1.5986)."""
    return torch.sigmoid(log_alpha - BETA * math.log(-LOW / HIGH)).clamp(EPSILON, 1 - EPSILON)


def settled(log_alpha: Tensor, keep: int) -> Tensor:
    """Masks without chance: sigmoid(0.8 a / BETA) for the `keep` largest of each row, 0 for the others.

    log_alpha (..., unit). Of equal ones those that come first stay, as in `spec.plan.top_k`.
    """
    first = log_alpha.argsort(dim=-1, descending=True, stable=True)[..., :keep]
    kept = torch.zeros_like(log_alpha).scatter_(-1, first, 1.0)
    return kept * torch.sigmoid(_SHARPNESS * log_alpha / BETA)


def penalty(share: Tensor, multipliers: Tensor, weights: Tensor) -> Tensor:
    """mean over rows of l1 g + l2 g^2, where g is how far a row's share of masked units is above what it should be.

    share (row,) is g, multipliers (2,) l1 and l2, weights (row,) sum to 1: a row that is itself masked counts less.
    """
    return (weights * (multipliers[0] * share + multipliers[1] * share.square())).sum()
