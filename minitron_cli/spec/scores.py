"""Importance scores: one array per axis, and where they come from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from minitron_cli.errors import MinitronError
from minitron_cli.spec.axes import FLAG_OF_AXIS, SCOPE
from minitron_cli.spec.shape import Shape

_AGAIN = "measure again with `minitron importance`"


@dataclass(frozen=True, slots=True)
class Scores:
    """Higher is more important. Arrays have their axis last, after its scope: "ffn" is (layer, ffn).

    Only layers can have negative scores: dropping one can lower the loss. A layer without the axis has zeros.

    `provenance` says what they were measured on: model digest, data, samples, sequence length, aggregation, dtype.
    """

    values: Mapping[str, np.ndarray]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def require(self, axis: str, shape: Shape) -> np.ndarray:
        """The array of `axis`, checked: its shape is the model's, its values are finite and rank something."""
        if axis not in self.values:
            raise MinitronError(
                f"the scores hold no {axis!r} axis (they hold {', '.join(self.values) or 'nothing'})",
                f"measure again with `minitron importance`, or leave --{FLAG_OF_AXIS.get(axis, axis)} as it is",
            )
        array, expected = self.values[axis], score_shape(axis, shape)
        if array.shape != expected:
            raise MinitronError(
                f"scores of axis {axis!r} have shape {array.shape}, this model needs {expected}",
                "these scores were measured on another model; run `minitron importance` on this one",
            )
        if array.dtype.kind != "f":
            raise MinitronError(f"scores of axis {axis!r} are {array.dtype}, not floating-point numbers", _AGAIN)
        if not np.isfinite(array).all():
            where = np.argwhere(~np.isfinite(array))[0].tolist()
            raise MinitronError(
                f"scores of axis {axis!r} are not finite, first at index {where}",
                "the model overflowed on the calibration data; measure again with --dtype float32",
            )
        if axis != "layer" and (array < 0).any():
            where = np.argwhere(array < 0)[0].tolist()
            raise MinitronError(f"scores of axis {axis!r} are negative, first at index {where}", _AGAIN)
        if not array.any():
            raise MinitronError(f"scores of axis {axis!r} are all zero: they rank nothing", _AGAIN)
        return array


def score_shape(axis: str, shape: Shape) -> tuple[int, ...]:
    """The shape of an axis' scores: its scope, then the axis itself."""
    return tuple(shape[a] for a in (*SCOPE.get(axis, ()), axis))
