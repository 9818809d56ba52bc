"""Candidate shapes under a budget: every point of a grid whose size is in the window (Minitron, section 2.3)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import lcm, prod
from typing import Any

from minitron_cli.errors import MinitronError
from minitron_cli.spec.axes import FLAG_OF_AXIS, SEARCHED
from minitron_cli.spec.family import Family
from minitron_cli.spec.shape import Shape, can_be_cut, kv_bytes_per_token, num_parameters, state_bytes

MOST_POINTS = 1_000_000  # of a grid, each of which is counted: about a minute
# Of the widths of experts: transformers multiplies them by a product whose rows begin at multiples of 16 bytes.
EXPERT_MULTIPLE = 8
CLOSE = 0.02  # relative distance from a budget that counts as meeting it


@dataclass(frozen=True, slots=True)
class Candidate:
    """A shape inside the budget, and its exact size."""

    shape: Shape
    parameters: int
    non_embedding: int


@dataclass(frozen=True, slots=True)
class Window:
    """Inclusive bounds on total parameters; `max_bytes` also bounds weights, the KV cache of `kv_tokens` tokens
    and, where there is one, the state of a sequence.
    """

    low: float
    high: float
    max_bytes: float | None = None
    kv_tokens: int = 0
    bytes_per_element: int = 2


def around(parameters: float, tolerance: float) -> Window:
    """A budget with a relative tolerance: 4e9 at 0.05 -> 3.8e9 to 4.2e9."""
    return Window(parameters * (1 - tolerance), parameters * (1 + tolerance))


def default_grid(source: Shape, steps: int = 8, multiple: int = 1) -> dict[str, list[int]]:
    """About `steps` values per axis, from half the source's size (two thirds of its layers) upwards.

    Heads stay: the authors found models that keep their heads stronger at equal size (arXiv 2408.11796, insights).
    Hidden sizes are multiples of their number, as some model classes demand, and widths of experts multiples of 8.
    Widths below the source's are multiples of `multiple`; where that is 1, of the largest power of two that divides
    the source's and gives enough values.
    """
    grid = {}
    for axis, share in SEARCHED.items():
        if axis in source:
            heads = source.get("head", 1) if axis == "hidden" else 1
            aligned = EXPERT_MULTIPLE if "expert" in source and axis in ("hidden", "expert_ffn") else 1
            unit = next(n for n in (lcm(heads, aligned), heads, 1) if source[axis] % n == 0)
            bottom = round(source[axis] * share)
            rounded = axis != "layer" and multiple > 1
            grid[axis] = (_multiples(source[axis], bottom, steps, lcm(unit, multiple)) if rounded
                          else _divisions(source[axis], bottom, steps, unit))  # fmt: skip
    return grid


def _divisions(top: int, bottom: int, steps: int, unit: int) -> list[int]:
    """Values from `bottom` to `top`, at equal distances from the top."""
    while (top - bottom) // (unit * 2) >= steps and top % (unit * 2) == 0:
        unit *= 2
    stride = max(unit, (top - bottom) // steps // unit * unit)
    return sorted(range(top, bottom - 1, -stride))


def _multiples(top: int, bottom: int, steps: int, unit: int) -> list[int]:
    """The multiples of `unit` (or twice it, four times ...) from `bottom` to `top`, and `top` itself."""
    while (top - bottom) // (unit * 2) >= steps:
        unit *= 2
    return sorted({*range(-(-bottom // unit) * unit, top, unit), top})


def near(
    family: Family,
    config: Mapping[str, Any],
    source: Shape,
    parameters: int,
    multiple: int = 1,
    depths: Sequence[int] | None = None,
    fixed: Mapping[str, int] | None = None,
) -> list[Candidate]:
    """Shapes within 2 percent of a number of parameters, on the coarsest default grid that has some.

    Where none has, the nearest shape of the finest grid; empty where no shape can be cut. `depths` are the numbers of
    layers allowed (None: those of the grid), `fixed` the sizes of axes that are not for the grid to choose.
    """
    for steps in (8, 16, 32):
        grid = default_grid(source, steps, multiple)
        if depths is not None:
            grid = {**grid, "layer": [depth for depth in depths if depth >= min(grid["layer"])]}
        grid |= {axis: [size] for axis, size in (fixed or {}).items()}
        if found := candidates(family, config, source, grid, around(parameters, CLOSE)):
            return found
    every = candidates(family, config, source, grid, Window(0, float("inf")))
    return sorted(every, key=lambda found: abs(found.parameters - parameters))[:1]


def candidates(
    family: Family,
    config: Mapping[str, Any],
    source: Shape,
    grid: Mapping[str, Sequence[int]],
    window: Window,
    *,
    ffn_factors: Sequence[float] = (),
) -> list[Candidate]:
    """Every valid grid point inside the window, largest first.

    `grid` gives absolute sizes per axis; `ffn_factors` instead sets ffn = factor x hidden, as the paper's table does.
    Axes not on the grid keep the source's size. The source itself and points that cannot be cut
    from it are left out.
    """
    unknown = [axis for axis in grid if axis not in source]
    if unknown:
        raise MinitronError(f"the model has no axis {', '.join(unknown)}", f"axes: {', '.join(source)}")
    points = prod(map(len, grid.values())) * max(1, len(ffn_factors))
    if points > MOST_POINTS:
        raise MinitronError(f"the grid has {points:,} shapes", f"at most {MOST_POINTS:,}: give AXIS=LOW:HIGH:STEP")
    lines = family.expected(config)
    found = []
    axes = list(grid)
    for values in product(*(grid[axis] for axis in axes)):
        shape = source.with_(**dict(zip(axes, values)))
        for sized in _with_factors(shape, ffn_factors):
            total = num_parameters(lines, sized)
            if (
                sized != source
                and window.low <= total <= window.high
                and _fits(sized, total, window)
                and can_be_cut(family, source, sized)
            ):
                found.append(Candidate(sized, total, num_parameters(lines, sized, embedding=False)))
    return sorted(found, key=lambda c: (-c.parameters, [-c.shape[axis] for axis in FLAG_OF_AXIS if axis in source]))


def _with_factors(shape: Shape, factors: Sequence[float]) -> list[Shape]:
    return [shape.with_(ffn=round(factor * shape["hidden"])) for factor in factors] if factors else [shape]


def _fits(shape: Shape, parameters: int, window: Window) -> bool:
    if window.max_bytes is None:
        return True
    width = window.bytes_per_element
    cache = window.kv_tokens * kv_bytes_per_token(shape, width) + bool(window.kv_tokens) * state_bytes(shape, width)
    return parameters * width + cache <= window.max_bytes
