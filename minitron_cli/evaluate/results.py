"""From what was measured to what is shown: comparison rows, the results object, Markdown."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from minitron_cli.checkpoint.provenance import versions
from minitron_cli.evaluate.compare import compare, kept_share, loss_difference
from minitron_cli.evaluate.harness import Score
from minitron_cli.evaluate.losses import ALL
from minitron_cli.evaluate.side_by_side import MODEL_FIGURES, Measured

FORMAT = 1
_ACCURACIES = ("acc", "exact_match", "pass", "mean_pass")
COLUMNS = ("task", "metric", "shots", "n", "model", "value", "stderr", "kept", "p", "test")


def results(measured: Sequence[Measured], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The results object of an evaluation: settings, models, and one row per task, metric and model."""
    reference = measured[0]
    return {
        "format": FORMAT,
        "reference": reference.name,
        "settings": dict(settings),
        "models": [_model(found, reference) for found in measured],
        "rows": [_row(score, found, reference) for found in measured for score in found.scores],
        "versions": versions(),
    }


def _model(found: Measured, reference: Measured) -> dict[str, Any]:
    """`loss` is nats per token over all the data, `accuracy` the plain mean of the tasks' main metrics and `chance`
    that of a uniform guess, None where a task has none.
    """
    whole = found.losses.get(ALL, {})
    return {
        "name": found.name,
        "path": found.path,
        "digest": found.digest,
        "parameters": found.parameters,
        "tokens_per_second": found.tokens_per_second,
        "loss": whole.get("nats_per_token"),
        "bits_per_byte": whole.get("bits_per_byte"),
        "accuracy": _mean(score.value for score in _mains(found.scores)),
        "chance": _mean(score.chance for score in _mains(found.scores)),
        "machine": found.machine,
        "dtype": found.dtype,
        "stored_dtype": found.stored_dtype,
        "losses": {
            domain: _loss(figures, None if found is reference else reference.losses.get(domain))
            for domain, figures in found.losses.items()
        },
        "error": found.error,
    }


def _loss(figures: Mapping[str, Any], base: Mapping[str, Any] | None) -> dict[str, Any]:
    """A domain's figures, with the difference from the reference where it was measured on the same text."""
    found = loss_difference(figures["blocks"], base["blocks"]) if base else None
    shown = {key: value for key, value in figures.items() if key != "blocks"}
    return shown | {"difference": asdict(found) if found else None}


def _mains(scores: Sequence[Score]) -> list[Score]:
    """The main metric of each task: its last accuracy (acc_norm where a task has both)."""
    own = [score for score in scores if score.group is None]
    return list({score.task: score for score in own if score.metric.startswith(_ACCURACIES)}.values())


def _mean(values: Iterable[float | None]) -> float | None:
    """The plain mean; None of nothing, and where one of the values is not known."""
    found = list(values)
    known = [value for value in found if value is not None]
    return statistics.fmean(known) if found and len(known) == len(found) else None


def _asked(score: Score) -> tuple[Any, ...]:
    """What two models must have in common for a comparison; one task may be asked for with several numbers of shots."""
    return score.task, score.key, score.shots, score.num_samples


def _row(score: Score, found: Measured, reference: Measured) -> dict[str, Any]:
    base = next((other for other in reference.scores if _asked(other) == _asked(score)), None)
    row = {key: value for key, value in asdict(score).items() if key != "samples"}
    row |= {"model": found.name, "metric": score.key, "kept": None, "comparison": None}
    if base is None or found is reference:
        return row
    paired = compare(score.samples, base.samples)
    # A share of a perplexity means nothing: lower is better, and nothing is its chance level.
    kept = kept_share(score.value, base.value, score.chance) if score.higher_is_better else None
    return row | {"kept": kept, "comparison": asdict(paired) if paired else None}


def gate_values(found: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """`model -> {"task.metric": value}` for gates; losses are `DOMAIN.nats_per_token`, counts `model.parameters`."""
    values: dict[str, dict[str, float]] = {}
    for model in found["models"]:
        if model["parameters"] is None:
            continue
        own = values.setdefault(model["name"], {})
        own |= {f"model.{key}": model[key] for key in MODEL_FIGURES if model[key] is not None}
        for domain, figures in model["losses"].items():
            own |= {f"{domain}.{key}": value for key, value in figures.items() if isinstance(value, float | int)}
    for row in found["rows"]:
        values[row["model"]][f"{row['task']}.{row['metric']}"] = row["value"]
    return values


def task_table(found: Mapping[str, Any]) -> list[list[str]]:
    """One line per task, metric and model, the models of a task next to each other: cells for `COLUMNS`."""
    order = list(dict.fromkeys((row["task"], row["metric"]) for row in found["rows"]))
    rows = sorted(found["rows"], key=lambda row: order.index((row["task"], row["metric"])))
    return [_cells(row) for row in rows]


def _cells(row: Mapping[str, Any]) -> list[str]:
    paired = row["comparison"]
    arrow = "" if row["higher_is_better"] else " (lower is better)"
    return [
        row["task"] if row["group"] is None else f"  {row['task']}",
        row["metric"] + arrow,
        "" if row["shots"] is None else str(row["shots"]),
        str(row["num_samples"]),
        row["model"],
        f"{row['value']:.4f}",
        "" if row["stderr"] is None else f"{row['stderr']:.4f}",
        "" if row["kept"] is None or math.isnan(row["kept"]) else kept_text(row["kept"]),
        "" if paired is None else p_text(paired["p_value"]),
        "" if paired is None else paired["test"],
    ]


def kept_text(kept: float) -> str:
    """What is kept of the reference's score above chance."""
    return f"{kept:.1%}" if kept > 0 else "below chance"


def p_text(p: float) -> str:
    """A p-value without false precision."""
    return "<0.0001" if p < 1e-4 else f"{p:.4f}" if p < 0.1 else f"{p:.2f}"


Columns = tuple[list[str], list[list[str]]]  # the head of a table, and its rows


def model_table(found: Mapping[str, Any]) -> Columns:
    """Columns and rows of the models themselves."""
    columns = ["model", "parameters", "nats/token", "bits/byte", "mean accuracy", "tokens/s"]
    keys = ("parameters", "loss", "bits_per_byte", "accuracy", "tokens_per_second")
    forms, rows = (",", ".4f", ".4f", ".4f", ",.0f"), []
    for model in found["models"]:
        if model["parameters"] is None:
            rows.append([model["name"], "not evaluated", "", "", "", ""])
            continue
        rows.append([model["name"], *(_figure(model[key], form) for key, form in zip(keys, forms))])
    return columns, rows


def _figure(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def domain_table(found: Mapping[str, Any]) -> Columns:
    """Columns and rows of the losses, the models of a domain next to each other; no row where none was measured.

    Beside a model's loss stands how far it is above the reference's, with half a 95% interval.
    """
    above = f"above {found['reference']}"
    columns = ["domain", "model", "tokens", "nats/token", above, "bits/byte", "KL", "top-1 agreement"]
    domains = list(dict.fromkeys(domain for model in found["models"] for domain in model["losses"]))
    if len(domains) == 2:  # one, and all of it
        domains.remove(ALL)
    rows = [
        [
            domain,
            model["name"],
            f"{figures['tokens']:,}",
            f"{figures['nats_per_token']:.4f}",
            _difference(figures["difference"]),
            _figure(figures["bits_per_byte"], ".4f"),
            _figure(figures.get("kl"), ".4f"),
            _figure(figures.get("top1_agreement"), ".1%"),
        ]
        for domain in domains
        for model in found["models"]
        if (figures := model["losses"].get(domain))
    ]
    return columns, rows


def _difference(found: Mapping[str, float] | None) -> str:
    return "" if found is None else f"{found['difference']:+.4f} ± {1.96 * found['stderr']:.4f}"


def markdown(found: Mapping[str, Any]) -> str:
    """The tables as GitHub Markdown."""
    blocks = [_markdown_table(*model_table(found))]
    if found["rows"]:
        blocks.append(_markdown_table(COLUMNS, task_table(found)))
    domains = domain_table(found)
    if domains[1]:
        blocks.append(_markdown_table(*domains))
    return "\n\n".join(blocks)


def _markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table without the columns of what was not measured."""
    kept = [i for i in range(len(columns)) if any(row[i] for row in rows)]
    lines = [[line[i] for i in kept] for line in (columns, ["---"] * len(columns), *rows)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
