"""Corrections of values that trimming needs to keep the function, applied while the tensors stream by.

Gemma multiplies its embeddings by sqrt(hidden), which changes with the width. With s = sqrt(d / d') the rows of the
embedding times s give the same residual stream; where the output head is the same tensor, the final norm takes the
factor out again: w' = w / s, or w' = (1 + w) / s - 1 where it scales by (1 + w).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np

from minitron_cli.checkpoint.bits import from_bits, to_bits
from minitron_cli.spec.axes import Weight, is_embedding, is_head, is_norm
from minitron_cli.spec.family import Family
from minitron_cli.spec.plan import Plan


@dataclass(frozen=True, slots=True)
class Repair:
    """x -> factor * (x + offset) - offset, for stored values x."""

    factor: float
    offset: float = 0.0

    def apply(self, raw: np.ndarray, dtype: str) -> np.ndarray:
        """Correct stored values: `raw` holds the bits of `dtype` as unsigned integers of its width; so does the result.

        Computed in float32 at least, rounded to nearest even once.
        """
        values = from_bits(raw, dtype)
        values = values.astype(np.float64 if dtype == "F64" else np.float32)
        return to_bits((values + self.offset) * self.factor - self.offset, dtype)


def embedding_scale(family: Family, plan: Plan) -> float:
    """s, by which embeddings are multiplied so that the stream stays the same; 1 where nothing is to repair."""
    if family.repair is None:
        return 1.0
    assert family.repair == "sqrt_hidden", family.repair
    return sqrt(plan.source["hidden"] / plan.target["hidden"])


def repair_of(family: Family, config: Mapping[str, Any], plan: Plan, weight: Weight) -> Repair | None:
    """The correction that this plan asks of a weight, or None."""
    if family.repair is None or "hidden" not in plan.kept:
        return None
    scale = embedding_scale(family, plan)
    if is_embedding(weight):
        return Repair(scale)
    tied = not any(map(is_head, family.expected(config)))
    final_norm = is_norm(weight) and not weight.name_axes
    return Repair(1 / scale, offset=family.norm_offset) if final_norm and tied else None
