"""Depth curves of a scores file: what dropping a block of layers does."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from minitron_cli.report.read.values import ScoresFile

_PREFIX = "depth."

METRIC_WORDS: Mapping[str, str] = {
    "loss": "loss, nats per token",
    "kl": "KL from the full model, nats",
    "mse": "squared logit distance",
}


@dataclass(frozen=True, slots=True)
class DepthCurve:
    """`values[i]` is the metric without layers [i, i + size), or after i + 1 greedy steps where `size` is None.

    `full` is the metric with nothing dropped; `order` the layers that greedy search dropped.
    """

    metric: str
    size: int | None
    values: np.ndarray
    full: float | None
    samples: int | None
    order: tuple[int, ...]

    @property
    def words(self) -> str:
        """The metric with its unit."""
        return METRIC_WORDS.get(self.metric, f"accuracy on {self.metric}")

    @property
    def higher_is_better(self) -> bool:
        """Losses and distances are better low; everything else that is measured is an accuracy."""
        return self.metric not in METRIC_WORDS

    @property
    def best(self) -> int:
        """The candidate that hurts least; the earlier one of equals."""
        return int(np.argmax(self.values) if self.higher_is_better else np.argmin(self.values))


def depth_curves(file: ScoresFile) -> list[DepthCurve]:
    """Every curve that the file carries, by metric and block size; greedy ones last."""
    facts = file.scores.provenance.get("depth") or {}
    found = []
    for name, values in file.raw.items():
        if not name.startswith(_PREFIX):
            continue
        key = name.removeprefix(_PREFIX)
        metric, _, kind = key.rpartition(".")
        known = facts.get(key, {})
        size = int(kind) if kind.isdigit() else None
        full, samples, order = known.get("full"), known.get("samples"), tuple(known.get("order", ()))
        found.append(DepthCurve(metric, size, np.asarray(values, np.float64), full, samples, order))
    return sorted(found, key=lambda c: (c.metric, c.size is None, c.size or 0))
