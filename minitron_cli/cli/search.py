"""`minitron search`: which shape under a budget?"""

from pathlib import Path
from typing import Annotated, Any

from minitron_cli.cli.common import (
    argument,
    count_text,
    emit,
    examples,
    option,
    parse_count,
    require_model,
    say,
    table,
)
from minitron_cli.errors import MinitronError

NAME = "search"
EXAMPLES = examples(
    "minitron search Llama-3.1-8B --params 4B --scores scores.safetensors --data tokens/ -o search-4b",
    "minitron search big --params 4B --grid layers=29:32 --grid heads=24,32,48 --ffn-factors 2.5,3,3.5,4 --list",
)


def command(
    model: Annotated[str | None, argument("MODEL", help="a model directory or a hub id")] = None,
    params: Annotated[int | None, option("--params", help="budget of total parameters", parser=parse_count)] = None,
    tolerance: Annotated[str, option("--tolerance", help="how far from --params a shape may lie")] = "5%",
    memory: Annotated[
        int | None, option("--memory", help="budget in bytes, weights and KV cache", parser=parse_count)
    ] = None,
    kv_tokens: Annotated[int, option("--kv-tokens", help="tokens in the cache (context x batch), with --memory")] = 0,
    grid: Annotated[list[str] | None, option("--grid", help="AXIS=A,B,C or AXIS=LOW:HIGH[:STEP]; repeatable")] = None,
    ffn_factors: Annotated[str | None, option("--ffn-factors", help="ffn as multiples of hidden: 2.5,3,4")] = None,
    listing: Annotated[bool, option("--list", help="only list the shapes and their sizes")] = False,
    scores: Annotated[Path | None, option("--scores", help="scores of `minitron importance`")] = None,
    data: Annotated[list[str] | None, option("--data", help="text to distill on, SOURCE[:WEIGHT]")] = None,
    eval_data: Annotated[list[str] | None, option("--eval-data", help="held-out text [default: --data]")] = None,
    measure: Annotated[int, option("--measure", help="shapes to cut and measure")] = 8,
    refine: Annotated[int, option("--refine", help="of those, shapes to distill for a while")] = 4,
    refine_tokens: Annotated[int, option("--refine-tokens", help="tokens for each, 0: none", parser=parse_count)] = 0,
    eval_windows: Annotated[int, option("--eval-windows", help="held-out windows to measure on")] = 64,
    seq_len: Annotated[
        int | None, option("--seq-len", help="tokens a window [default: the context, at most 1024]")
    ] = None,
    batch: Annotated[int, option("--batch", help="sequences an update, when refining")] = 32,
    lr: Annotated[float, option("--lr", help="peak learning rate, when refining")] = 1e-4,
    separator: Annotated[str, option("--separator", help="between documents: auto, bos, eos, bos+eos, none")] = "auto",
    text_field: Annotated[str | None, option("--text-field", help="the column that holds the text")] = None,
    device: Annotated[str, option("--device", help="auto, cpu, cuda or cuda:N")] = "auto",
    output: Annotated[
        Path | None, option("-o", "--output", help="directory of the search [default: search-PARAMS]")
    ] = None,
    as_json: Annotated[bool, option("--json", help="one JSON object on stdout")] = False,
) -> None:
    """Rank every shape in a budget by quality: forecast all, measure the best, distill the best of those a little."""
    from minitron_cli.search.options import SearchOptions

    window = _window(params, tolerance, memory, kv_tokens)
    options = SearchOptions(
        model=require_model(model, NAME), scores=scores or Path(), data=tuple(data or ()),
        eval_data=tuple(eval_data or data or ()), output=output or Path(f"search-{count_text(window.high)}"),
        window=window, grid=parse_grid(grid) if grid else None, ffn_factors=parse_factors(ffn_factors),
        measure=measure, refine=refine if refine_tokens else 0, refine_tokens=refine_tokens,
        eval_windows=eval_windows, seq_len=seq_len, batch=batch, lr=lr, separator=separator, text_field=text_field,
        device=device,
    )  # fmt: skip
    if listing:
        _list(options, as_json)
        return
    if scores is None or not options.eval_data:
        raise MinitronError(
            "ranking needs --scores and --data", "measure with `minitron importance` first, or add --list to only list"
        )
    _search(options, as_json)


def _search(options: Any, as_json: bool) -> None:
    from minitron_cli.search.picture import write_picture
    from minitron_cli.search.run import search
    from minitron_cli.search.table import facts, write_facts

    result = search(options, say)
    found = facts(result, options)
    write_facts(options.output, found)
    picture = write_picture(options.output / "pareto.svg", result)
    emit(found, as_json, lambda: _show(found, picture))


def _show(found: dict[str, Any], picture: Path) -> None:
    def loss(entry: dict[str, Any], key: str) -> str:
        return f"{entry[key]:.4f} ± {entry[key + '_stderr']:.4f}" if entry[key] is not None else ""

    rows = [
        [f"{i}{' =' if e['tied'] else ''}", e["name"], count_text(e["parameters"]), f"+{e['forecast']:.3f}",
         loss(e, "loss"), loss(e, "refined")]
        for i, e in enumerate(found["candidates"][:20], 1)
    ]  # fmt: skip
    table(["rank", "shape", "parameters", "forecast", "after the cut", "after distilling"], rows)
    if len(found["candidates"]) > 20:
        say(f"{len(found['candidates']) - 20} more in {found['output']}/search.json")
    say("'=' marks a tie with the best: the paired difference is within two standard errors")
    print(f"{picture}: loss against parameters")
    print(f"next: {found['next']}")


def _list(options: Any, as_json: bool) -> None:
    from minitron_cli.checkpoint.reader import open_checkpoint
    from minitron_cli.search.options import shape_name
    from minitron_cli.search.run import enumerate_shapes

    source = open_checkpoint(options.model)
    found = enumerate_shapes(source, options)
    entries = [
        {"name": shape_name(source.shape, c.shape), "shape": dict(c.shape.sizes), "parameters": c.parameters,
         "non_embedding_parameters": c.non_embedding} for c in found
    ]  # fmt: skip
    rows = [[e["name"], f"{e['parameters']:,}", f"{e['non_embedding_parameters']:,}"] for e in entries]
    emit({"candidates": entries}, as_json, lambda: table(["shape", "parameters", "non-embedding"], rows))
    if not as_json:
        print(f"{len(entries)} shapes; next: the same line with --scores and --data instead of --list ranks them")


def _window(params: int | None, tolerance: str, memory: int | None, kv_tokens: int) -> Any:
    from minitron_cli.spec.search import Window, around

    share = parse_share(tolerance)
    if params is None and memory is None:
        raise MinitronError("a search needs a budget", "give --params 4B, or --memory 16B (bytes) with --kv-tokens")
    window = around(params, share) if params is not None else Window(0, float("inf"))
    return Window(window.low, window.high, memory, kv_tokens)


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
        return tuple(float(part) for part in text.split(",")) if text else ()
    except ValueError as error:
        raise MinitronError(f"--ffn-factors {text} is not a list of numbers", "write it like 2.5,3,3.5,4") from error


def parse_grid(entries: list[str]) -> dict[str, tuple[int, ...]]:
    """["layers=29:32", "heads=24,32"] -> {"layer": (29, 30, 31, 32), "head": (24, 32)}."""
    from minitron_cli.errors import near_matches
    from minitron_cli.spec.shape import FLAG_OF_AXIS

    axis_of = {flag: axis for axis, flag in FLAG_OF_AXIS.items()}
    found = {}
    for entry in entries:
        flag, _, values = entry.partition("=")
        if flag not in axis_of:
            raise MinitronError(f"--grid {entry!r}: unknown axis {flag!r}", near_matches(flag, list(axis_of)))
        found[axis_of[flag]] = _grid_values(entry, values)
    return found


def _grid_values(entry: str, values: str) -> tuple[int, ...]:
    try:
        if ":" in values:
            low, high, *step = (int(part) for part in values.split(":"))
            return tuple(range(low, high + 1, *step))
        return tuple(int(part) for part in values.split(","))
    except (ValueError, TypeError) as error:
        raise MinitronError(f"--grid {entry!r} can not be read", "write AXIS=A,B,C or AXIS=LOW:HIGH[:STEP]") from error
