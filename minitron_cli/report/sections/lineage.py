"""Lineage: the tree of descent, as nested lists that are drawn as a tree."""

from collections.abc import Mapping, Sequence
from typing import Any

from minitron_cli.report import text
from minitron_cli.report.html import Html, join, missing, section, tag
from minitron_cli.report.read.figures import comparable_losses
from minitron_cli.report.read.values import Model, Run


def lineage(run: Run) -> Html:
    """From the roots down. A parent that is no model of this run is a root of its own."""
    if not run.models:
        return section("lineage", "Lineage", missing("No step has begun to make a model yet."))
    losses = {name: loss.value for name, loss in comparable_losses(run).items()}
    names = {m.name for m in run.models}
    roots = list(dict.fromkeys(m.parent for m in run.models if m.parent not in names))
    trees = [_root(root, [m for m in run.models if m.parent == root], run, losses) for root in roots]
    words = "Every model with what was done to its parent."
    return section("lineage", "Lineage", tag("p", words, class_="quiet"), tag("ul", trees, class_="tree", role="list"))


def _root(name: str | None, children: Sequence[Model], run: Run, losses: Mapping[str, float]) -> Html:
    """Something from outside the run, or nothing at all: then its children stand at the top."""
    if name is None:
        return join([_node(child, run, losses) for child in children])
    from_scratch = all(_options(child).get("from_scratch") for child in children)
    what = "architecture, new weights" if from_scratch else "root model, made elsewhere"
    box = tag("div", tag("strong", name), tag("div", what, class_="quiet"), class_="node root")
    return tag("li", box, _children(children, run, losses))


def _node(model: Model, run: Run, losses: Mapping[str, float]) -> Html:
    figures = [f"{text.count(model.parameters)} parameters"] if model.parameters else []
    if model.name in losses:
        figures.append(f"loss {losses[model.name]:.3f}")
    line = [
        tag("span", _verb_words(model), class_=f"badge {model.verb}"),
        tag("strong", model.name),
        tag("span", "in progress", class_="badge going") if model.state == "begun" else None,
        tag("span", " · ".join(figures)) if figures else None,
    ]
    change = _change(model)
    box = tag(
        "div", tag("div", line, class_="line"), tag("div", change, class_="quiet") if change else None, class_="node"
    )
    return tag("li", box, _children([m for m in run.models if m.parent == model.name], run, losses))


def _children(children: Sequence[Model], run: Run, losses: Mapping[str, float]) -> Html | None:
    """A line of descent goes straight down; only where it branches does it move to the right."""
    if not children:
        return None
    nodes = [_node(child, run, losses) for child in children]
    return tag("ul", nodes, class_="fork" if len(children) > 1 else "line", role="list")


def _verb_words(model: Model) -> str:
    return {"prune": "cut", "distill": "distilled", "train": "trained", "root": "root"}.get(model.verb, model.verb)


def _options(model: Model) -> Mapping[str, Any]:
    return model.manifest.get("options") or {}


def _change(model: Model) -> str:
    """What was done to the parent: sizes that changed, or tokens and teachers."""
    if model.plan is not None:
        source, target = model.plan.source, model.plan.target
        parts = [f"{text.axis_words(a)} {source[a]:,} → {target[a]:,}" for a in source if source[a] != target[a]]
        return ", ".join(parts)
    parts = [f"{text.count(model.tokens)} tokens"] if model.tokens else []
    if model.teachers:
        parts.append("taught by " + " and ".join(model.teachers))
    cut = _options(model).get("target")
    if model.verb == "prune" and cut:
        parts += [f"{text.axis_words(axis)} → {size:,}" for axis, size in cut.items()]
    return ", ".join(parts)
