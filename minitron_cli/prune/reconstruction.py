"""What a cut loses of each input, compared with plain trimming: from input Gram matrices alone.

An error is the mean square of what the kept inputs do not reconstruct, over the calibration tokens. Compensation takes
each dropped input relative to its own mean square, so that plain trimming loses 1 of each; a rotation takes the stream
after each norm, where plain trimming loses what is outside the channels with the most energy; a tied head takes the
logits.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

Place = tuple[str, int | None, int | None]  # what is read (an axis, or "logits"), layer, expert


class Error(NamedTuple):
    """The error of a cut as it is made, and that of plain trimming."""

    made: float
    plain: float

    @property
    def ratio(self) -> float:
        return self.made / self.plain if self.plain > 0 else 0.0


def overfit(tokens: int, unknowns: int, ridge: float) -> float:
    """By how much the error on new tokens is above that on those which a regression was solved on.

    Akaike's final prediction error (1969), (N + k) / (N - k); 1 where nothing was solved, or where the ridge was chosen
    on tokens held out.
    """
    return 1.0 if np.isinf(ridge) or tokens <= unknowns else (tokens + unknowns) / (tokens - unknowns)


def summary(errors: Mapping[Place, Error]) -> dict[str, Any]:
    """Ratios to plain trimming as minitron.json holds them: what is read -> {layer or layer.expert: ratio}."""
    found: dict[str, dict[str, float]] = {}
    for (axis, layer, expert), error in sorted(errors.items(), key=lambda item: (item[0][0], _number(item[0]))):
        place = "all" if layer is None else str(layer) if expert is None else f"{layer}.{expert}"
        found.setdefault(axis, {})[place] = round(error.ratio, 4)
    return found


def _number(place: Place) -> tuple[int, int]:
    return tuple(-1 if number is None else number for number in place[1:])  # type: ignore[return-value]


def lines(found: Mapping[str, Mapping[str, float]]) -> list[str]:
    """A `summary` for people, one line for each thing that is read: the mean and the range over layers."""
    return [
        f"{name}: {np.mean(list(ratios.values())):.2f} of the error of plain trimming"
        + f" ({min(ratios.values()):.2f} to {max(ratios.values()):.2f})" * (len(ratios) > 1)
        for name, ratios in found.items()
    ]


def warnings(found: Mapping[str, Mapping[str, float]]) -> list[str]:
    """One line for each axis of a `summary` of which some layers lose more than plain trimming would."""
    worse = {axis: {place: r for place, r in ratios.items() if r > 1} for axis, ratios in found.items()}
    return [
        f"{axis} of layer {', '.join(f'{place} ({ratio:.2f})' for place, ratio in places.items())} loses more than by "
        "plain trimming (1.00): measure with more --samples, or try --ridge auto"
        for axis, places in worse.items()
        if places
    ]
