"""Throughput: what the smaller model buys."""

from collections.abc import Mapping

from minitron_cli.report.draw import scores as draw
from minitron_cli.report.draw.scores import Measure
from minitron_cli.report.draw.style import Style
from minitron_cli.report.html import Html, figure, missing, section
from minitron_cli.report.read.values import Run


def throughput(run: Run, look: Mapping[str, Style]) -> Html:
    """Every bench, and the plain forward passes of evaluations."""
    blocks = [block for results in run.evaluations if (block := _forward(results.name, results.content, look))]
    if not blocks:
        blocks = [missing("No speed was measured in this run. `minitron bench MODEL...` measures it.")]
    return section("throughput", "Throughput", blocks)


def _forward(name: str, content: Mapping[str, object], look: Mapping[str, Style]) -> Html | None:
    models = content.get("models")
    assert isinstance(models, list)
    measures = [Measure("forward", m["name"], m["tokens_per_second"]) for m in models if m.get("tokens_per_second")]
    if not measures:
        return None
    picture = draw.bars(f"forward-{name}", measures, look, "tokens per second", "")
    return figure(
        picture, f"Plain forward passes, as {name} timed them; in brackets against {measures[0].model}.", wide=True
    )
