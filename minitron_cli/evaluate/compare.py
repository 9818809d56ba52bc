"""Paired statistics: two models on the same samples or the same text. Is the difference real?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

BOOTSTRAP_RESAMPLES = 10_000


@dataclass(frozen=True, slots=True)
class Paired:
    """A two-sided test of "no difference" over the samples that both models answered; `better` counts the samples that
    the model has above the reference.
    """

    test: str  # "mcnemar" (exact) or "bootstrap"
    p_value: float
    num_samples: int
    better: int
    worse: int
    difference: float  # mean(model) - mean(reference)


def compare(model: Mapping[str, float], reference: Mapping[str, float], seed: int = 0) -> Paired | None:
    """Exact McNemar for 0/1 samples, else a paired bootstrap of the mean difference; None without common samples."""
    common = sorted(model.keys() & reference.keys())
    if not common:
        return None
    ours = np.array([model[key] for key in common])
    theirs = np.array([reference[key] for key in common])
    better, worse = int((ours > theirs).sum()), int((ours < theirs).sum())
    binary = bool(np.isin(ours, (0.0, 1.0)).all() and np.isin(theirs, (0.0, 1.0)).all())
    p = mcnemar(better, worse) if binary else bootstrap(ours - theirs, seed)
    difference = float((ours - theirs).mean())
    return Paired("mcnemar" if binary else "bootstrap", p, len(common), better, worse, difference)


@dataclass(frozen=True, slots=True)
class LossDifference:
    """Nats per token by which a model's loss is above the reference's on the same text, with its standard error."""

    difference: float
    stderr: float
    num_blocks: int


def loss_difference(model: Sequence[Sequence[float]], reference: Sequence[Sequence[float]]) -> LossDifference | None:
    """The difference of two losses from their `Loss.blocks` (2, block), tokens and nats; None where the text differs.

    A block of neighbouring windows is one draw, so that what windows of a document share counts: the variance is that
    of a ratio of sums over blocks (Cochran, Sampling Techniques, eq. 2.46).
    """
    ours, theirs = np.asarray(model), np.asarray(reference)
    if ours.shape != theirs.shape or ours.shape[1] < 2 or not np.array_equal(ours[0], theirs[0]):
        return None
    tokens, nats = ours[0], ours[1] - theirs[1]
    count, ratio = len(tokens), float(nats.sum() / tokens.sum())
    variance = float(((nats - ratio * tokens) ** 2).sum()) * count / (count - 1) / float(tokens.sum()) ** 2
    return LossDifference(ratio, math.sqrt(variance), count)


def kept_share(value: float, base: float, chance: float | None) -> float | None:
    """How much of the reference's score above chance a model has: 0 at chance; None where the reference has none."""
    above = base - (chance or 0.0)
    return (value - (chance or 0.0)) / above if above > 0 else None


def mcnemar(better: int, worse: int) -> float:
    """Exact two-sided McNemar test: discordant pairs are a fair coin (binomial, n = better + worse) under the null."""
    total, fewer = better + worse, min(better, worse)
    # In logarithms, so that thousands of discordant pairs neither overflow nor vanish.
    log_half = total * math.log(0.5)
    terms = [_log_choose(total, k) + log_half for k in range(fewer + 1)]
    top = max(terms)
    tail = math.exp(top) * math.fsum(math.exp(term - top) for term in terms)
    return min(1.0, 2.0 * tail)


def bootstrap(differences: np.ndarray, seed: int = 0, resamples: int = BOOTSTRAP_RESAMPLES) -> float:
    """Two-sided p of a mean of `differences` (n,) as far from 0, resampling them after a shift to mean 0.

    The shift makes the null true; one is added to both counts, so that p is never 0 (Davison & Hinkley 1997, 4.4).
    """
    observed = abs(float(differences.mean()))
    if not differences.any():
        return 1.0
    rng = np.random.default_rng(seed)
    centred = differences - differences.mean()
    rows = max(1, (1 << 22) // len(centred))
    extreme = 0
    for first in range(0, resamples, rows):
        count = min(rows, resamples - first)
        means = centred[rng.integers(0, len(centred), (count, len(centred)))].mean(1)
        extreme += int((np.abs(means) >= observed - 1e-12).sum())
    return (extreme + 1) / (resamples + 1)


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
