"""The whole page: one file that needs nothing else, made from templates that escape every text."""

import shlex
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from minitron_cli import __version__
from minitron_cli.report import text
from minitron_cli.report.draw import family, training
from minitron_cli.report.draw.style import styles
from minitron_cli.report.read import figures
from minitron_cli.report.read.values import Run
from minitron_cli.report.sections import (
    cost,
    depth,
    evaluation,
    importance,
    kept,
    lineage,
    overview,
    throughput,
    trajectory,
)
from minitron_cli.report.sections import training as trainings

# The sections in reading order: template and anchor -> words in the navigation.
SECTIONS = {
    "family": "Family",
    "lineage": "Lineage",
    "cost": "Cost",
    "training": "Training",
    "evaluation": "Evaluation",
    "throughput": "Throughput",
    "importance": "Importance",
    "depth": "Depth",
    "kept": "Kept",
    "commands": "Commands",
}
GENERATOR = "minitron report"
_TEMPLATES = Path(__file__).parent / "templates"


def page(run: Run, gpu_price: float | None = None) -> str:
    """The report as HTML text; the same run gives the same text. A section without content is left out."""
    environment = _environment(run)
    environment.globals["gpu_price"] = gpu_price
    rendered = {name: environment.get_template(f"{name}.html").render().strip() for name in SECTIONS}
    sections = {name: Markup(body) for name, body in rendered.items() if body}  # escaped when it was rendered
    style = Markup((_TEMPLATES / "style.css").read_text())
    return environment.get_template("page.html").render(sections=sections, words=SECTIONS, style=style)


def _environment(run: Run) -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    for form in (text.count, text.size, text.flops, text.share, text.number, text.duration):
        environment.filters[form.__name__] = form
    environment.filters["command"] = shlex.join
    modules: dict[str, Any] = {
        "overview": overview, "lineage": lineage, "cost": cost, "trainings": trainings, "evaluation": evaluation,
        "trajectory": trajectory, "throughput": throughput, "importance": importance, "depth": depth, "kept": kept,
        "figures": figures,
        "draw_family": family.size_against_loss, "draw_training": training,
    }  # fmt: skip
    environment.globals |= {
        "run": run, "look": styles(run), "losses": figures.comparable_losses(run),
        "generator": f"{GENERATOR} {__version__}", "version": __version__, **modules,
    }  # fmt: skip
    return environment
