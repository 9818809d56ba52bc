"""What is typed after `minitron search`, read: budgets, grids, shares."""

from typing import TYPE_CHECKING

from minitron_cli.errors import MinitronError, near_matches

if TYPE_CHECKING:
    from minitron_cli.search.speed import SpeedBudget
    from minitron_cli.spec.search import Window

BENCH_GRID = "128x128"
BENCH_FLAGS = ("--bench-grid", "--bench-batch-sizes")


def read_window(
    params: int | None, tolerance: str, memory: int | None, kv_tokens: int, speed: "SpeedBudget | None"
) -> "Window":
    """The bounds on size; a search needs a budget of some kind."""
    from minitron_cli.spec.search import Window, around

    share = parse_share(tolerance)
    if params is None and memory is None and not (speed and speed.binds):
        raise MinitronError(
            "a search needs a budget",
            "give --params 4B, --memory 16GB with --kv-tokens, --latency MS or --speedup 1.5",
        )
    if kv_tokens and memory is None:
        raise MinitronError("--kv-tokens counts towards --memory", "add --memory 16GB")
    window = around(params, share) if params is not None else Window(0, float("inf"))
    return Window(window.low, window.high, memory, kv_tokens)


def read_speed(
    grid: str | None, batches: str, repeats: int, latency: float | None, speedup: float | None
) -> "SpeedBudget | None":
    """What is timed and what it must hold; None where nothing is asked of it."""
    from minitron_cli.evaluate.bench import parse_grid as cells
    from minitron_cli.search.speed import SpeedBudget

    if grid is None and latency is None and speedup is None:
        return None
    for flag, value in (("--latency", latency), ("--speedup", speedup)):
        if value is not None and not 0 < value < float("inf"):
            raise MinitronError(f"{flag} {value:g} is no budget", "milliseconds above 0, or a factor such as 1.5")
    return SpeedBudget(cells(grid or BENCH_GRID, batches, BENCH_FLAGS), repeats, latency, speedup)


def parse_share(text: str) -> float:
    """ "5%" or "0.05" -> 0.05."""
    try:
        share = float(text.rstrip("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share < 1:
        raise MinitronError(f"--tolerance {text} is not a share", "write it like 5% or 0.05")
    return share


def parse_factors(text: str | None) -> tuple[float, ...]:
    """ "2.5,3" -> (2.5, 3.0)."""
    try:
        factors = tuple(float(part) for part in text.split(",")) if text else ()
    except ValueError as error:
        raise MinitronError(f"--ffn-factors {text} is not a list of numbers", "write it like 2.5,3,3.5,4") from error
    if not all(0 < factor < float("inf") for factor in factors):
        raise MinitronError(f"--ffn-factors {text}: a factor is above 0", "write it like 2.5,3,3.5,4")
    return factors


def parse_grid(entries: list[str]) -> dict[str, tuple[int, ...]]:
    """["layers=29:32", "heads=24,32"] -> {"layer": (29, 30, 31, 32), "head": (24, 32)}."""
    from minitron_cli.spec.axes import AXIS_OF_FLAG

    found: dict[str, tuple[int, ...]] = {}
    for entry in entries:
        flag, _, values = entry.partition("=")
        if flag not in AXIS_OF_FLAG:
            raise MinitronError(f"--grid {entry!r}: unknown axis {flag!r}", near_matches(flag, list(AXIS_OF_FLAG)))
        if AXIS_OF_FLAG[flag] in found:
            raise MinitronError(f"--grid names {flag} twice", f"one entry an axis: --grid {flag}=A,B,C")
        found[AXIS_OF_FLAG[flag]] = _grid_values(entry, values)
    return found


def _grid_values(entry: str, values: str) -> tuple[int, ...]:
    try:
        if ":" in values:
            low, high, *step = (int(part) for part in values.split(":"))
            found = tuple(range(low, high + 1, *step))
        else:
            found = tuple(int(part) for part in values.split(","))
    except (ValueError, TypeError) as error:
        raise MinitronError(f"--grid {entry!r} cannot be read", "write AXIS=A,B,C or AXIS=LOW:HIGH[:STEP]") from error
    if not found or min(found) < 1:
        raise MinitronError(f"--grid {entry!r} names no sizes", "sizes are 1 or more, LOW is not above HIGH")
    return found


def require_counts(**counts: int) -> None:
    """Every count must be 1 or more; all offenders at once."""
    wrong = [f"--{name.replace('_', '-')} {value}" for name, value in counts.items() if value < 1]
    if wrong:
        raise MinitronError(f"not a count: {', '.join(wrong)}", "1 or more")
