"""The whole page: one file that needs nothing else."""

from pathlib import Path

from minitron_cli import __version__
from minitron_cli.report.draw.style import styles
from minitron_cli.report.html import Html, join, tag
from minitron_cli.report.read.values import Run
from minitron_cli.report.sections.commands import commands
from minitron_cli.report.sections.depth import depth
from minitron_cli.report.sections.evaluation import evaluation
from minitron_cli.report.sections.importance import importance
from minitron_cli.report.sections.kept import kept
from minitron_cli.report.sections.lineage import lineage
from minitron_cli.report.sections.overview import overview
from minitron_cli.report.sections.throughput import throughput
from minitron_cli.report.sections.training import training

# The anchors of the sections with their words in the navigation, in reading order.
SECTIONS = {
    "family": "Family",
    "lineage": "Lineage",
    "training": "Training",
    "evaluation": "Evaluation",
    "throughput": "Throughput",
    "importance": "Importance",
    "depth": "Depth",
    "kept": "Kept",
    "commands": "Commands",
}
GENERATOR = "minitron report"
# Nothing may be fetched, and no script runs: the page is safe to open wherever it came from.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def page(run: Run) -> str:
    """The report as HTML text; the same run gives the same text."""
    look = styles(run)
    bodies = {
        "family": overview(run, look),
        "lineage": lineage(run),
        "training": training(run, look),
        "evaluation": evaluation(run, look),
        "throughput": throughput(run, look),
        "importance": importance(run),
        "depth": depth(run),
        "kept": kept(run),
        "commands": commands(run),
    }
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="generator", content=f"{GENERATOR} {__version__}"),
        tag("title", f"{run.title} – minitron report"),
        tag("style", Html((Path(__file__).parent / "style.css").read_text())),
    )
    body = tag("body", _header(run), tag("main", [bodies[name] for name in SECTIONS], id="content"), _footer())
    return "<!doctype html>\n" + tag("html", head, "\n", body, lang="en") + "\n"


def _header(run: Run) -> Html:
    links = [tag("li", tag("a", words, href=f"#{name}")) for name, words in SECTIONS.items()]
    problems = tag("ul", [tag("li", text) for text in run.problems], class_="problems") if run.problems else None
    return tag(
        "header",
        tag("a", "Skip to the content", href="#content", class_="skip"),
        tag("p", "minitron report", class_="kicker"),
        tag("h1", run.title),
        tag("p", run.about, class_="about") if run.about else None,
        tag("p", _state(run), class_="state"),
        problems,
        tag("nav", tag("ul", links), aria_label="Sections"),
    )


def _state(run: Run) -> Html:
    """How far the run is, in words."""
    if run.finished:
        return join(
            tag("span", "finished", class_="badge done"),
            f" {len(run.models)} models, {len(run.steps)} steps" if run.steps else None,
        )
    done = sum(step.state == "done" for step in run.steps)
    going = [step.name for step in run.steps if step.state == "begun"]
    steps = "step" if done == 1 and not run.coming else "steps"
    count = f" {done} of {len(run.steps) + len(run.coming)}" if run.coming else f" {done}"
    words = f"{count} {steps} done" + (f", at work on {', '.join(going)}" if going else "") if run.steps else ""
    return join(
        tag("span", "in progress", class_="badge going"),
        words,
        tag("span", " What is not there yet is said in its place; type the same line again later.", class_="quiet"),
    )


def _footer() -> Html:
    return tag(
        "footer",
        tag(
            "p",
            f"Made by minitron {__version__}. Every figure on this page comes from the files of the run; "
            "nothing was fetched.",
        ),
    )
