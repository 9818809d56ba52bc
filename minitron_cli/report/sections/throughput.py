"""Throughput: what the smaller model buys, and on which machine."""

from collections.abc import Mapping
from typing import Any

from minitron_cli.report import text
from minitron_cli.report.draw import scores as draw
from minitron_cli.report.draw.scores import Measure
from minitron_cli.report.draw.style import Style
from minitron_cli.report.draw.svg import Picture
from minitron_cli.report.read.values import Results
from minitron_cli.report.table import Cell, Table

# The figures of a bench that are drawn; the table has all of them.
DRAWN = {
    "prefill_tokens_per_second": "prefill, tokens per second",
    "decode_tokens_per_second": "decoding, tokens per second",
}


def bench_words(results: Results) -> str:
    """How and on what a bench was measured."""
    settings = results.content.get("settings", {})
    machine = settings.get("machine", text.UNKNOWN_MACHINE)
    return (
        f"Median of {settings.get('repeats', 'several')} interleaved rounds on the {settings.get('engine', 'hf')} "
        f"engine on {machine}; whiskers are as wide as their middle half, ratios are taken "
        "within a round."
    )


def bench_picture(results: Results, metric: str, look: Mapping[str, Style]) -> Picture:
    """One of `DRAWN` of every model and cell."""
    reference = results.content.get("reference")
    measures = []
    for row in results.content["rows"]:
        median, ratio = row[metric]["median"], None if row["model"] == reference else row["ratios"][metric]
        measures.append(Measure(_cell(row), row["model"], median, median * row[metric]["spread"] / 2, ratio))
    return draw.bars(measures, look, DRAWN[metric], results.name, width=540)


def bench_table(results: Results) -> Table:
    """Every figure of every cell."""
    columns = ("model", "tokens in, out, batch", "prefill tokens/s", "decode tokens/s", "first token",
               "each further token", "KV cache", "peak memory", "sequences that fit")  # fmt: skip
    rows = [
        [
            row["model"],
            _cell(row),
            _speed(row, "prefill_tokens_per_second"),
            _speed(row, "decode_tokens_per_second"),
            f"{row['time_to_first_token']['median'] * 1e3:.2f} ms",
            f"{row['time_per_output_token']['median'] * 1e3:.2f} ms",
            text.size(row.get("kv_bytes")),
            text.size(row.get("peak_bytes")),
            text.exact(row.get("batch_ceiling")),
        ]
        for row in results.content["rows"]
    ]
    caption = "Speed and memory, with ratios to the reference"
    return Table(caption, columns, rows, numbers_from=2).without_empty_columns()


def forward_picture(results: Results, look: Mapping[str, Style]) -> tuple[Picture, str] | None:
    """Plain forward passes, which an evaluation times beside its tasks, and the words under them."""
    timed = [m for m in results.content["models"] if m.get("tokens_per_second")]
    if not timed:
        return None
    first = timed[0]
    measures = []
    for m in timed:
        ratio = None if m is first else m["tokens_per_second"] / first["tokens_per_second"]
        measures.append(Measure("", m["name"], m["tokens_per_second"], None, ratio))
    machines = sorted({m.get("machine") or text.UNKNOWN_MACHINE for m in timed})
    words = (
        f"Plain forward passes on {'; '.join(machines)}, timed by {results.name}; in brackets against {first['name']}."
    )
    return draw.bars(measures, look, "tokens per second", results.name), words


def _cell(row: Mapping[str, Any]) -> str:
    return f"{row['input']:,} in, {row['output']:,} out, batch {row['batch']:,}"


def _speed(row: Mapping[str, Any], metric: str) -> Cell:
    under = f"{row['ratios'][metric]:.2f}×, ± {row[metric]['spread'] / 2:.0%}"
    return Cell(f"{row[metric]['median']:,.0f}", (under,))
