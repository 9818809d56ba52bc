"""Evaluation: scores with their error bars, paired tests against the reference, losses per domain."""

from collections.abc import Mapping, Sequence
from typing import Any

from minitron_cli.report import text
from minitron_cli.report.draw import scores as draw
from minitron_cli.report.draw.scores import Measure
from minitron_cli.report.draw.style import Style
from minitron_cli.report.draw.svg import Picture
from minitron_cli.report.read.figures import INTERVAL
from minitron_cli.report.read.values import Results
from minitron_cli.report.table import Cell, Table

REAL = 0.05  # a paired test below this says that the difference is real
Row = Mapping[str, Any]


def task_picture(results: Results, look: Mapping[str, Style]) -> Picture | None:
    """The scores between 0 and 1 of which more is better, with the chance level of each task."""
    known = [row for row in results.content.get("rows", ()) if row["value"] is not None]
    rows = [row for row in known if row["higher_is_better"] and abs(row["value"]) <= 1]
    if not rows:
        return None
    measures = [Measure(_task(row), row["model"], row["value"], row["stderr"]) for row in rows]
    chance = {_task(row): row["chance"] for row in rows if row.get("chance") is not None}
    return draw.points(measures, chance, look, "score", results.name)


def task_table(results: Results) -> Table | None:
    """A row a task, a column a model: score and standard error, what is kept of the reference's, the paired test."""
    rows: Sequence[Row] = results.content.get("rows", ())
    if not rows:
        return None
    models = [m["name"] for m in results.content["models"] if not m.get("error")]
    found = {(_task(row), row["model"]): row for row in rows}
    first = {_task(row): row for row in reversed(rows)}
    body = [
        [Cell(task, (_setting(first[task]),)), *(_cell(found.get((task, model))) for model in models)]
        for task in dict.fromkeys(map(_task, rows))
    ]
    return Table("Score ± standard error; share of the reference's kept, above chance; paired test against it",
                 ("task", *models), body)  # fmt: skip


def tests_note(results: Results) -> str:
    tests = sum(row.get("comparison") is not None for row in results.content.get("rows", ()))
    return (
        f"A share in bold is a difference that the paired test on the same samples calls real (p < {REAL}); of {tests} "
        f"tests, about {REAL * tests:.0f} would be bold by chance alone."
    )


def domain_table(results: Results) -> Table | None:
    """Loss per domain: nats per token, the difference from the reference with its 95% interval, bits per byte, KL."""
    models = [m for m in results.content["models"] if m.get("losses")]
    if not models:
        return None
    domains = list(dict.fromkeys(domain for m in models for domain in m["losses"]))
    rows = []
    for domain in sorted(domains, key=lambda d: d == "all"):
        figures = [m["losses"].get(domain) for m in models]
        tokens = next((f["tokens"] for f in figures if f), 0)
        head = Cell("all text" if domain == "all" else domain, (f"{tokens:,} tokens",))
        rows.append([head, *map(_loss_cell, figures)])
    caption = (
        "Loss in nats per token; difference from the reference on the same windows with its 95% interval; bits per byte"
    )
    return Table(caption, ("held-out text", *(m["name"] for m in models)), rows)


def gate_table(results: Results) -> Table | None:
    """The bounds of --assert."""
    gates = results.content.get("gates", ())
    rows = [
        [g["gate"], g["model"], f"{g['value']:.6g}", f"{g['bound']:.6g}", "holds" if g["passed"] else "fails"]
        for g in gates
    ]
    return Table("Gates", ("gate", "model", "measured", "bound", "verdict"), rows, numbers_from=2) if rows else None


def _task(row: Row) -> str:
    return f"{row['task']}, {row['metric']}"


def _setting(row: Row) -> str:
    shots = "" if row.get("shots") is None else f"{row['shots']}-shot, "
    direction = "" if row["higher_is_better"] else ", lower is better"
    chance = f", chance {row['chance']:.3g}" if row.get("chance") is not None else ""
    group = f", part of {row['group']}" if row.get("group") else ""
    return f"{shots}{row['num_samples']:,} samples{chance}{direction}{group}"


def _cell(row: Row | None) -> Cell | str:
    if row is None:
        return text.NOTHING
    if row["value"] is None:
        return "not finite"
    error = f" ± {row['stderr']:.4f}" if row["stderr"] is not None else ""
    paired, under = row.get("comparison"), []
    if row.get("kept") is not None and row["higher_is_better"]:
        under.append(text.kept(row["kept"]))
    elif paired:
        under.append(f"{paired['difference']:+.4f}")
    if paired:
        under.append(text.p_value(paired["p_value"]))
    return Cell(f"{row['value']:.4f}{error}", tuple(under), strong=bool(paired and paired["p_value"] < REAL))


def _loss_cell(figures: Row | None) -> Cell | str:
    if not figures:
        return text.NOTHING
    if figures["nats_per_token"] is None:
        return "not finite"
    under = []
    found = figures.get("difference")
    if found and found["difference"] is not None:
        under.append(f"{found['difference']:+.4f} ± {INTERVAL * found['stderr']:.4f}")
    if figures.get("bits_per_byte") is not None:
        under.append(f"{figures['bits_per_byte']:.4f} bits/byte")
    if figures.get("kl") is not None:
        under.append(f"KL {figures['kl']:.4f}")
    if figures.get("top1_agreement") is not None:
        under.append(f"{text.share(figures['top1_agreement'])} same top-1")
    return Cell(f"{figures['nats_per_token']:.4f}", tuple(under))
