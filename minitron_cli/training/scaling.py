"""The loss that a model of some size should reach: L(N) = E + A / N^alpha, fitted to models of one family that were
trained on the same tokens (Sheared-LLaMA, arXiv 2310.06694, section 2.2 and appendix B).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from minitron_cli.errors import MinitronError

LEAST_SIZES = 3
# Exponents that are looked at; published ones of language models are 0.03 to 0.5.
_EXPONENTS = np.geomspace(1e-3, 3.0, 600)


@dataclass(frozen=True, slots=True)
class Curve:
    """L(N) = floor + scale * (N / unit)^-exponent, in nats per token; `bound` where the fit wanted a floor below 0."""

    floor: float
    scale: float
    exponent: float
    unit: float
    bound: bool

    def __call__(self, parameters: float) -> float:
        return self.floor + self.scale * float(np.exp(-self.exponent * np.log(parameters / self.unit)))


def fit(sizes: Sequence[float], losses: Sequence[float], *, bounded: bool = True) -> Curve:
    """Least squares over E, A and alpha; with `bounded`, E >= 0.

    For a given alpha the rest is linear, so that only alpha is searched: a grid, then golden sections around its best.
    """
    if len(set(sizes)) < LEAST_SIZES:
        raise MinitronError(
            f"{len(set(sizes))} sizes of a family do not determine E + A / N^alpha",
            f"give at least {LEAST_SIZES}, or take the losses of one larger model: --source MODEL",
        )
    logs, wanted = np.log(np.array(sizes, np.float64) / sizes[0]), np.array(losses, np.float64)

    def linear(exponent: float) -> tuple[float, float, float, bool]:
        """The squared error, E and A for this alpha, and whether E is held at 0."""
        powers = np.exp(-exponent * logs)
        (low, scale), *_ = np.linalg.lstsq(np.stack([np.ones_like(powers), powers], 1), wanted)
        held = bounded and bool(low < 0)
        if held:
            low, scale = 0.0, powers @ wanted / (powers @ powers)
        return float(((low + scale * powers - wanted) ** 2).sum()), float(low), float(scale), held

    best = int(np.argmin([linear(exponent)[0] for exponent in _EXPONENTS]))
    low, high = _EXPONENTS[max(best - 1, 0)], _EXPONENTS[min(best + 1, len(_EXPONENTS) - 1)]
    ratio = (5**0.5 - 1) / 2
    while high - low > 1e-12 * high:
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, right) if linear(left)[0] < linear(right)[0] else (left, high)
    exponent = float(low + high) / 2
    _, floor, scale, held = linear(exponent)
    if scale <= 0:
        raise MinitronError(
            "the losses do not fall with the size of the model", "give models of one family, trained on the same tokens"
        )
    return Curve(floor, scale, exponent, float(sizes[0]), held)
