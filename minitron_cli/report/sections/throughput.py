"""Throughput: what the smaller model buys."""

from collections.abc import Mapping
from typing import Any

from minitron_cli.report import text
from minitron_cli.report.draw import scores as draw
from minitron_cli.report.draw.scores import Measure
from minitron_cli.report.draw.style import Style
from minitron_cli.report.draw.svg import unique
from minitron_cli.report.html import Html, figure, missing, section, table, tag
from minitron_cli.report.read.values import Results, Run

# The figures of a bench that are drawn; the table has all of them.
_DRAWN = {
    "prefill_tokens_per_second": "prefill, tokens per second",
    "decode_tokens_per_second": "decoding, tokens per second",
}


def throughput(run: Run, look: Mapping[str, Style]) -> Html:
    """Every bench, and the plain forward passes of evaluations."""
    blocks = [_bench(results, look) for results in run.benchmarks if results.content["rows"]]
    blocks += [block for results in run.evaluations if (block := _forward(results, look))]
    if not blocks:
        blocks = [missing("No speed was measured in this run. `minitron bench MODEL...` measures it.")]
    return section("throughput", "Throughput", blocks)


def _bench(results: Results, look: Mapping[str, Style]) -> Html:
    content = results.content
    settings = content.get("settings", {})
    rounds, engine = settings.get("repeats", "several"), settings.get("engine", "hf")
    words = f"Median of {rounds} interleaved rounds on the {engine} engine"
    head = tag("h3", results.name, " ", tag("span", f"reference: {content.get('reference', '–')}", class_="quiet"))
    pair = [_picture(results, metric, shown, look) for metric, shown in _DRAWN.items()]
    note = tag(
        "p", f"{words}; whiskers are as wide as their middle half, ratios are taken within a round.", class_="quiet"
    )
    return tag("article", head, tag("div", pair, class_="pair"), note, _table(content["rows"]))


def _picture(results: Results, metric: str, words: str, look: Mapping[str, Style]) -> Html:
    reference = results.content.get("reference")
    measures = [
        Measure(
            _cell_words(row),
            row["model"],
            row[metric]["median"],
            row[metric]["median"] * row[metric]["spread"] / 2,
            None if row["model"] == reference else row["ratios"][metric],
        )
        for row in results.content["rows"]
    ]
    picture = draw.bars(unique("bench", results.name, metric), measures, look, words, width=540)
    return figure(picture, f"{words[0].upper()}{words[1:]}; in brackets against {reference}.")


def _cell_words(row: Mapping[str, Any]) -> str:
    return f"{row['input']:,} in, {row['output']:,} out, batch {row['batch']:,}"


def _table(rows: list[Mapping[str, Any]]) -> Html:
    ceiling = any(row.get("batch_ceiling") is not None for row in rows)
    columns = [
        "model",
        "tokens in, out, batch",
        "prefill tokens/s",
        "decode tokens/s",
        "first token",
        "each further token",
        "KV cache",
        "peak memory",
    ]
    body = []
    for row in rows:
        cells: list[object] = [
            row["model"],
            _cell_words(row),
            _speed(row, "prefill_tokens_per_second"),
            _speed(row, "decode_tokens_per_second"),
            f"{row['time_to_first_token']['median'] * 1e3:.2f} ms",
            f"{row['time_per_output_token']['median'] * 1e3:.2f} ms",
            text.size(row.get("kv_bytes")),
            text.size(row.get("peak_bytes")),
        ]
        fits = row.get("batch_ceiling")
        body.append([*cells, "–" if fits is None else f"{fits:,}"] if ceiling else cells)
    columns += ["sequences that fit"] if ceiling else []
    return table(columns, body, caption="Speed and memory, with ratios to the reference", numbers_from=2)


def _speed(row: Mapping[str, Any], metric: str) -> Html:
    under = f"{row['ratios'][metric]:.2f}×, ± {row[metric]['spread'] / 2:.0%}"
    return tag("span", f"{row[metric]['median']:,.0f}", tag("span", under, class_="under"))


def _forward(results: Results, look: Mapping[str, Style]) -> Html | None:
    """Plain forward passes, which an evaluation times beside its tasks."""
    timed = [m for m in results.content["models"] if m.get("tokens_per_second")]
    if not timed:
        return None
    first = timed[0]
    measures = [
        Measure(
            "",
            m["name"],
            m["tokens_per_second"],
            None,
            None if m is first else m["tokens_per_second"] / first["tokens_per_second"],
        )
        for m in timed
    ]
    picture = draw.bars(unique("forward", results.name), measures, look, "tokens per second")
    words = f"Plain forward passes, timed by {results.name}; in brackets against {first['name']}."
    return figure(picture, words, wide=True)
