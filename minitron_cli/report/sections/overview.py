"""The family at a glance: headline figures and the table of all models."""

from dataclasses import dataclass
from typing import Any

from minitron_cli.report import text
from minitron_cli.report.read.figures import Losses, descent, kept_accuracy, loss_interval, spent
from minitron_cli.report.read.values import Model, Run
from minitron_cli.report.sections.lineage import done_by
from minitron_cli.report.table import Cell, Table


@dataclass(frozen=True, slots=True)
class Card:
    """A headline figure in large type, what it is, and what it is made of."""

    big: str
    words: str
    detail: str


def family_table(run: Run, losses: Losses) -> Table:
    """Every model of the run; columns that nothing is known for are left out."""
    columns = ("model", "parameters", "without embeddings", "KV bytes a token", "state bytes a sequence",
               f"held-out loss ({losses.source})", "task accuracy", "tokens/s", "training tokens in all")  # fmt: skip
    rows = [_row(model, run, losses) for model in run.models if _is_known(model)]
    caption = "Size, quality, speed and cost of every model; shares are of the largest, for accuracy above chance"
    return Table(caption, columns, rows).without_empty_columns()


def _is_known(model: Model) -> bool:
    """Whether there is something to say of a model: it was made here, or an evaluation measured it."""
    return model.state != "elsewhere" or bool(model.evaluation)


def _row(model: Model, run: Run, losses: Losses) -> list[Cell | str]:
    reference, own = run.reference, model.evaluation
    states = any(m.facts.get("state_bytes") for m in run.models)  # of Mamba, linear attention, convolutions
    several = sum(map(_is_known, run.models)) > 1
    parameters = _ratio(model.parameters, reference.parameters if reference and several else None)
    speed = _ratio(own.get("tokens_per_second"), reference.evaluation.get("tokens_per_second") if reference else None)
    kept, line = kept_accuracy(model, reference), descent(model, run)
    going = ("in progress",) if model.state == "begun" else ()
    tokens = [f"{text.count(model.tokens)} its own"] if model.tokens and spent(line[1:], "tokens") else []
    tokens += [f"{text.flops(spent(line, 'flops'))} FLOPs"] if spent(line, "flops") else []
    return [
        Cell(model.name, (done_by(model), *going)),
        Cell(text.exact(model.parameters), (text.share(parameters),) if parameters else (), share=parameters),
        text.exact(model.facts.get("non_embedding_parameters")),
        text.exact(model.facts.get("kv_bytes_per_token")),
        text.exact(model.facts.get("state_bytes") if states else None),
        Cell(text.number(losses.values.get(model.name)), tuple(_interval_words(model))),
        Cell(text.share(own.get("accuracy")), () if kept is None else (text.kept(kept),), share=kept),
        Cell(text.exact(own.get("tokens_per_second")), (f"{speed:.2f}×",) if speed else ()),
        Cell(text.count(spent(line, "tokens")), tuple(tokens)),
    ]


def _interval_words(model: Model) -> list[str]:
    found = loss_interval(model)
    return [f"{found[0]:+.3f} ± {found[1]:.3f}"] if found else []


def cards(run: Run, losses: Losses) -> list[Card]:
    """What the smallest finished model comes to against the largest, and what the whole chain has cost."""
    largest, small = run.reference, smallest(run)
    found = []
    if largest is not None and small is not None:
        assert small.parameters
        assert largest.parameters
        share = text.share(small.parameters / largest.parameters)
        words = f"{text.count(small.parameters)} of {text.count(largest.parameters)}"
        found = [Card(share, "of the parameters", words), *_quality(small, largest, losses), *_speed(small, largest)]
    return found + _cost(run)


def smallest(run: Run) -> Model | None:
    """The smallest model that is trained and finished, None where that is the largest."""
    trained = [m for m in run.models if m.verb != "prune" and m.state == "done" and m.parameters]
    small = min(trained, key=lambda m: m.parameters or 0, default=None)
    return None if small is run.reference else small


def _quality(small: Model, largest: Model, losses: Losses) -> list[Card]:
    found = []
    if (kept := kept_accuracy(small, largest)) is not None:
        own, base, chance = small.evaluation["accuracy"], largest.evaluation["accuracy"], small.evaluation.get("chance")
        words = "of the task accuracy" + (" above chance" if chance is not None else "")
        detail = f"{text.share(own)} against {text.share(base)}" + (f", chance {chance:.0%}" if chance else "")
        found.append(Card(text.share(kept) if kept > 0 else "below chance", words, detail))
    if small.name in losses.values and largest.name in losses.values:
        own, base = losses.values[small.name], losses.values[largest.name]
        interval = loss_interval(small)
        paired = interval is not None and abs(interval[0] - (own - base)) < 1e-6  # else of another reference
        error = f" ± {interval[1]:.3f} (95%)" if interval and paired else ""
        found.append(Card(f"{own - base:+.3f}", "nats per token of loss", f"{own:.3f} against {base:.3f}{error}"))
    return found


def _speed(small: Model, largest: Model) -> list[Card]:
    own, base = (m.evaluation.get("tokens_per_second") for m in (small, largest))
    if not own or not base:
        return []
    machine = small.evaluation.get("machine")
    words = f"{own:,.0f} against {base:,.0f} tokens/s" + (f" on {machine}" if machine else "")
    return [Card(f"{own / base:.2f}×", "the speed of plain forward passes", words)]


def _cost(run: Run) -> list[Card]:
    """Training tokens, time and FLOPs of all steps together, not of the last one."""
    trained = [m for m in run.models if m.tokens and m.state != "elsewhere"]
    found = []
    if len(trained) > 1:
        parts = ", ".join(f"{m.name} {text.count(m.tokens)}" for m in trained)
        found.append(Card(text.count(spent(trained, "tokens")), "training tokens in all", parts))
    seconds = sum(step.seconds or 0.0 for step in run.steps)
    if seconds:
        flops = sum(step.actual.get("flops") or 0.0 for step in run.steps) or spent(trained, "flops")
        detail = f"{len(run.steps)} steps" + (f", {text.flops(flops)} FLOPs" if flops else "")
        found.append(Card(text.duration(seconds), "for the whole chain", detail))
    return found


def loss_note(run: Run, losses: Losses) -> str:
    """What the family's figures are, and why training shows other ones."""
    if not losses.values:
        return ""
    if losses.source == "training":
        return "No evaluation has run yet: losses are those that training measured last on its own held-out windows."
    tokens = {m.evaluation.get("losses", {}).get("all", {}).get("tokens") for m in run.models} - {None}
    counted = f" of {max(tokens):,} tokens" if tokens else ""
    machines = sorted({m.evaluation["machine"] for m in run.models if m.evaluation.get("machine")})
    return (
        f"Loss is in nats per token on the evaluation's held-out text{counted}; ± is half a 95% interval of the "
        "difference from the reference on the same windows. Accuracy is the mean of the tasks' main metrics. Training "
        "tokens are those of a model and of its ancestors in this run. "
        "Speed is that of plain forward passes" + (f" on {'; '.join(machines)}." if machines else ".")
    )


def _ratio(value: Any, base: Any) -> float | None:
    """value / base, None where either is unknown."""
    return value / base if value is not None and base else None
