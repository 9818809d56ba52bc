"""The candidates that are fast enough, in the order of their forecast, without measuring all of them.

Times are forecast from those measured so far: a cost per pass, per layer and per weight
(least squares on the ratio to the source, never negative). A candidate whose forecast is over the budget by
more than a margin is skipped; every one that is taken was measured.
"""

from collections.abc import Callable, Sequence
from statistics import median

from minitron_cli.errors import MinitronError
from minitron_cli.search.result import Entry
from minitron_cli.search.speed import Speed
from minitron_cli.search.timing import ShapeTimer
from minitron_cli.spec.proxy import calibrate, forecast
from minitron_cli.spec.search import Candidate
from minitron_cli.spec.shape import shape_name

Say = Callable[[str], None]
MARGIN = 0.15
Times = list[tuple[Candidate, Speed]]


def fast_enough(timer: ShapeTimer, source: Candidate, entries: Sequence[Entry], wanted: int, say: Say) -> list[Entry]:
    """The first `wanted` of `entries` that meet the budget; the speed of each that was measured is set on it.

    Raises MinitronError when not even the one that should be fastest meets it.
    """
    taken: list[Entry] = []
    times: Times = []
    for entry in _corners(entries):
        _measure(timer, entry, source, times)
    fastest = min(entries, key=lambda e: max(_ratios(timer, source, times, e.candidate)))
    _measure(timer, fastest, source, times)
    for entry in entries:
        if entry.speed is None and _too_slow(timer, source, times, entry.candidate):
            continue
        _measure(timer, entry, source, times)
        if entry.speed is not None and entry.speed.holds(timer.budget):
            taken.append(entry)
        if len(taken) == wanted:
            break
    if not taken:
        raise _none_fits(timer, times)
    say(f"{len(taken)} of {len(entries)} shapes taken by their speed, {len(times)} measured")
    return taken


def _corners(entries: Sequence[Entry]) -> list[Entry]:
    """The smallest, the largest, the shallowest and the deepest: enough for a first forecast of times."""
    keys: list[Callable[[Entry], tuple[int, int]]] = [
        lambda e: (e.candidate.parameters, e.candidate.shape["layer"]),
        lambda e: (e.candidate.shape["layer"], -e.candidate.parameters),
    ]
    ends = [pick(entries, key=key) for key in keys for pick in (min, max)]
    return list({id(entry): entry for entry in ends}.values())


def _measure(timer: ShapeTimer, entry: Entry, source: Candidate, times: Times) -> None:
    if entry.speed is None:
        shape = entry.candidate.shape
        entry.speed = timer.speed(shape, shape_name(shape))
        times.append((entry.candidate, entry.speed))


def _ratios(timer: ShapeTimer, source: Candidate, times: Times, candidate: Candidate) -> list[float]:
    """Forecast of time / the source's time in every cell of the grid."""
    found = []
    for cell in (str(cell) for cell in timer.budget.cells):
        known = [(_features(c, source), 1 / speed.speedups[cell]) for c, speed in times]
        weights = calibrate([*known, (_features(source, source), 1.0)])
        found.append(forecast(_features(candidate, source), weights))
    return found


def _features(candidate: Candidate, source: Candidate) -> dict[str, float]:
    return {
        "pass": 1.0,
        "layer": candidate.shape["layer"] / source.shape["layer"],
        "weight": candidate.parameters / source.parameters,
    }


def _too_slow(timer: ShapeTimer, source: Candidate, times: Times, candidate: Candidate) -> bool:
    """Whether the forecast is over the budget by more than the margin, in any cell."""
    budget = timer.budget
    for cell, ratio in zip(map(str, budget.cells), _ratios(timer, source, times, candidate)):
        own = median(speed.source_seconds[cell] for _, speed in times)
        if budget.speedup is not None and ratio > (1 + MARGIN) / budget.speedup:
            return True
        if budget.latency_ms is not None and ratio * own * 1e3 > (1 + MARGIN) * budget.latency_ms:
            return True
    return False


def _none_fits(timer: ShapeTimer, times: Times) -> MinitronError:
    budget = timer.budget
    best = max((speed for _, speed in times), key=lambda s: s.least_speedup)
    given = {"--latency": budget.latency_ms, "--speedup": budget.speedup}
    asked = [f"{flag} {value:g}" for flag, value in given.items() if value is not None]
    return MinitronError(
        f"no shape on the grid meets {' and '.join(asked)} at {', '.join(map(str, budget.cells))}: the fastest of "
        f"{len(times)} measured takes {best.slowest_ms:.1f} ms, {best.least_speedup:.2f} x the source's speed",
        "loosen the budget, or let the grid reach smaller shapes: --grid layers=8:32 --grid ffn=1024:8192:512",
    )
