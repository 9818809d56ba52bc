"""Evaluation: scores with their error bars, paired tests against the reference, losses per domain."""

from collections.abc import Mapping, Sequence
from typing import Any

from minitron_cli.report import text
from minitron_cli.report.draw import scores as draw
from minitron_cli.report.draw.scores import Measure
from minitron_cli.report.draw.style import Style
from minitron_cli.report.draw.svg import unique
from minitron_cli.report.html import Html, figure, missing, section, table, tag
from minitron_cli.report.read.values import Results, Run

REAL = 0.05  # a paired test below this says that the difference is real


def evaluation(run: Run, look: Mapping[str, Style]) -> Html:
    """One block per results file."""
    if not run.evaluations:
        return section(
            "evaluation",
            "Evaluation",
            missing("No evaluation has finished in this run. `minitron eval MODEL... --tasks T --data D` makes one."),
        )
    return section("evaluation", "Evaluation", [_block(results, look) for results in run.evaluations])


def _block(results: Results, look: Mapping[str, Style]) -> Html:
    content = results.content
    rows: Sequence[Mapping[str, Any]] = content.get("rows", ())
    failed = [
        tag("p", f"{m['name']} was not evaluated: {m['error']}", class_="missing")
        for m in content["models"]
        if m.get("error")
    ]
    return tag(
        "article",
        tag("h3", results.name, " ", tag("span", f"reference: {content.get('reference', '–')}", class_="quiet")),
        failed,
        _tasks(results, rows, look) if rows else None,
        _domains(content["models"]),
        _gates(content.get("gates", ())),
    )


def _task(row: Mapping[str, Any]) -> str:
    return f"{row['task']}, {row['metric']}"


def _tasks(results: Results, rows: Sequence[Mapping[str, Any]], look: Mapping[str, Style]) -> Html:
    up = [row for row in rows if row["higher_is_better"] and abs(row["value"]) <= 1]
    measures = [Measure(_task(row), row["model"], row["value"], row["stderr"]) for row in up]
    models = [m["name"] for m in results.content["models"] if not m.get("error")]
    tasks = list(dict.fromkeys(_task(row) for row in rows))
    found = {(_task(row), row["model"]): row for row in rows}
    first = {task: next(row for row in rows if _task(row) == task) for task in tasks}
    body = [
        [
            tag("span", task, tag("span", _setting(first[task]), class_="under")),
            *(_cell(found.get((task, model))) for model in models),
        ]
        for task in tasks
    ]
    grid = table(
        ("task", *models), body, caption="Score ± standard error; share of the reference kept; paired test against it"
    )
    tests = sum(row.get("comparison") is not None for row in rows)
    legend = tag(
        "p",
        f"A share in bold is a difference that the paired test on the same samples calls real (p < {REAL}); of {tests} "
        f"tests, about {REAL * tests:.0f} would be bold by chance alone.",
        class_="quiet",
    )
    if not measures:
        return tag("div", grid, legend)
    picture = draw.points(unique("eval", results.name), measures, look, "score")
    return tag(
        "div",
        figure(picture, "Scores with 95% intervals (1.96 standard errors). Right is better.", wide=True),
        grid,
        legend,
    )


def _setting(row: Mapping[str, Any]) -> str:
    shots = "" if row.get("shots") is None else f"{row['shots']}-shot, "
    direction = "" if row["higher_is_better"] else ", lower is better"
    group = f", part of {row['group']}" if row.get("group") else ""
    return f"{shots}{row['num_samples']:,} samples{direction}{group}"


def _cell(row: Mapping[str, Any] | None) -> Html | str:
    if row is None:
        return "–"
    error = f" ± {row['stderr']:.4f}" if row["stderr"] is not None else ""
    paired, kept = row.get("comparison"), row.get("kept")
    under = None
    if kept is not None:
        real = paired is not None and paired["p_value"] < REAL
        share = tag("strong", text.share(kept)) if real else text.share(kept)
        under = tag("span", share, f", {text.p_value(paired['p_value'])}" if paired else "", class_="under")
    return tag("span", f"{row['value']:.4f}{error}", under)


def _domains(models: Sequence[Mapping[str, Any]]) -> Html | None:
    """Loss per domain: nats per token, bits per byte, and the distance from the reference where it was measured."""
    with_losses = [m for m in models if m.get("losses")]
    if not with_losses:
        return None
    domains = list(dict.fromkeys(domain for m in with_losses for domain in m["losses"]))
    body = []
    for domain in sorted(domains, key=lambda d: d == "all"):
        figures = [m["losses"].get(domain) for m in with_losses]
        tokens = next((f["tokens"] for f in figures if f), 0)
        head = tag("span", "all text" if domain == "all" else domain, tag("span", f"{tokens:,} tokens", class_="under"))
        body.append([head, *(_loss_cell(f) for f in figures)])
    return table(
        ("held-out text", *(m["name"] for m in with_losses)),
        body,
        caption="Loss in nats per token; bits per byte; distance from the reference",
    )


def _loss_cell(figures: Mapping[str, Any] | None) -> Html | str:
    if not figures:
        return "–"
    under = []
    if figures.get("bits_per_byte") is not None:
        under.append(f"{figures['bits_per_byte']:.4f} bits/byte")
    if figures.get("kl") is not None:
        under.append(f"KL {figures['kl']:.4f}")
    if figures.get("top1_agreement") is not None:
        under.append(f"{text.share(figures['top1_agreement'])} same top-1")
    return tag("span", f"{figures['nats_per_token']:.4f}", [tag("span", line, class_="under") for line in under])


def _gates(gates: Sequence[Mapping[str, Any]]) -> Html | None:
    if not gates:
        return None
    rows = [
        [
            gate["gate"],
            gate["model"],
            f"{gate['value']:.6g}",
            f"{gate['bound']:.6g}",
            "holds" if gate["passed"] else "fails",
        ]
        for gate in gates
    ]
    return table(("gate", "model", "measured", "bound", "verdict"), rows, caption="Gates", numbers_from=2)
