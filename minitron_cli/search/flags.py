"""The flags of `minitron search` as a request: budgets, grids, shares."""

from collections.abc import Sequence
from pathlib import Path

from minitron_cli.errors import MinitronError, near_matches
from minitron_cli.evaluate.bench import parse_grid as parse_cells
from minitron_cli.search.request import SearchRequest
from minitron_cli.search.speed import SpeedBudget
from minitron_cli.spec.counts import count_text
from minitron_cli.spec.search import Window, around

MOST_SIZES = 10_000  # of an axis on a grid
BENCH_GRID = "128x128"
BENCH_FLAGS = ("--bench-grid", "--bench-batch-sizes")


def search_request(
    model: str, *, params: int | None = None, tolerance: str = "5%", memory: int | None = None, kv_tokens: int = 0,
    latency: float | None = None, speedup: float | None = None, bench_grid: str | None = None,
    bench_batch_sizes: str = "1", bench_repeats: int = 5, grid: tuple[str, ...] = (), ffn_factors: str | None = None,
    scores: Path | None = None, data: tuple[str, ...] = (), eval_data: tuple[str, ...] = (), measure: int = 8,
    refine: int = 4, refine_tokens: int = 0, eval_windows: int = 64, seq_len: int | None = None, batch: int = 32,
    lr: float = 1e-4, seed: int = 0, separator: str = "auto", text_field: str | None = None, device: str = "auto",
    output: Path | None = None,
) -> SearchRequest:  # fmt: skip
    """The checked request that these flags make. Held-out text is `eval_data`, or else `data`."""
    speed = read_speed(bench_grid, bench_batch_sizes, bench_repeats, latency, speedup)
    window = read_window(params, tolerance, memory, kv_tokens, speed)
    request = SearchRequest(
        model=model, scores=scores or Path(), data=tuple(data), eval_data=tuple(eval_data or data),
        output=output or Path("search" if params is None else f"search-{count_text(params)}"), window=window,
        grid=parse_grid(grid) if grid else None, ffn_factors=parse_factors(ffn_factors), measure=measure,
        refine=min(refine, measure) if refine_tokens else 0, refine_tokens=refine_tokens, eval_windows=eval_windows,
        seq_len=seq_len, batch=batch, lr=lr, separator=separator, text_field=text_field, device=device, seed=seed,
        speed=speed,
    )  # fmt: skip
    if speed is not None and request.cuts_vocabulary:
        raise MinitronError(
            "times are per token, and candidates of other vocabularies have other tokens",
            "leave out --latency, --speedup and --bench-grid, or the vocabulary of --grid",
        )
    return request


def require_ranking(request: SearchRequest) -> None:
    """Listing shapes needs nothing but the model; ranking them needs scores and text."""
    if not request.scores.name or not request.eval_data:
        raise MinitronError(
            "ranking needs --scores and --data", "measure with `minitron importance` first, or add --list to only list"
        )
    if request.cuts_vocabulary and not request.data:
        raise MinitronError("a cut vocabulary needs text to count tokens on", "add --data TEXT")
    if request.refine_tokens and not request.data:
        raise MinitronError("--refine-tokens needs text to distill on", "add --data")


def read_window(
    params: int | None, tolerance: str, memory: int | None, kv_tokens: int, speed: SpeedBudget | None
) -> Window:
    """The bounds on size; a search needs a budget of some kind."""
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
) -> SpeedBudget | None:
    """What is timed and what it must meet; None where nothing is to be timed."""
    if grid is None and latency is None and speedup is None:
        return None
    for flag, value in (("--latency", latency), ("--speedup", speedup)):
        if value is not None and not 0 < value < float("inf"):
            raise MinitronError(f"{flag} {value:g} is not a budget", "milliseconds above 0, or a factor such as 1.5")
    return SpeedBudget(parse_cells(grid or BENCH_GRID, batches, BENCH_FLAGS), repeats, latency, speedup)


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


def parse_grid(entries: Sequence[str]) -> dict[str, tuple[int, ...]]:
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
            found: Sequence[int] = range(low, high + 1, *step)
        else:
            found = [int(part) for part in values.split(",")]
        num_sizes = len(found)
    except (ValueError, TypeError, OverflowError) as error:
        raise MinitronError(f"--grid {entry!r} cannot be read", "write AXIS=A,B,C or AXIS=LOW:HIGH[:STEP]") from error
    if not num_sizes or min(found[0], found[-1], *found[:MOST_SIZES]) < 1:
        raise MinitronError(f"--grid {entry!r} names no sizes", "sizes are 1 or more, LOW is not above HIGH")
    if num_sizes > MOST_SIZES:
        raise MinitronError(f"--grid {entry!r} lists {num_sizes:,} sizes", "give a step: AXIS=LOW:HIGH:STEP")
    return tuple(dict.fromkeys(found))
