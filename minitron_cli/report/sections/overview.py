"""The family at a glance: what a reader who sees nothing else should have seen."""

from collections.abc import Callable, Mapping
from typing import Any

from minitron_cli.report import text
from minitron_cli.report.draw.family import size_against_loss
from minitron_cli.report.draw.style import Style
from minitron_cli.report.html import Html, figure, join, missing, section, table, tag
from minitron_cli.report.read.figures import Loss, comparable_losses
from minitron_cli.report.read.values import Model, Run

COLUMNS = (
    "model",
    "parameters",
    "without embeddings",
    "KV bytes a token",
    "held-out loss",
    "task accuracy",
    "tokens/s",
    "tokens spent",
)


VERB_WORDS = {"train": "trained", "prune": "cut", "distill": "distilled"}


def overview(run: Run, look: Mapping[str, Style]) -> Html:
    """Headline figures, the table, the picture."""
    if not run.models:
        return section("family", "The family at a glance", missing("No step has begun to make a model yet."))
    losses = comparable_losses(run)
    rows = [_row(model, run, losses) for model in run.models if model.state != "elsewhere"]
    picture = size_against_loss(run, look, {name: loss.value for name, loss in losses.items()})
    return section(
        "family",
        "The family at a glance",
        _cards(run, losses),
        table(COLUMNS, rows, caption="Size, quality, speed and cost of every model; shares are of the largest"),
        _notes(losses),
        figure(
            picture,
            "Down is better, left is smaller. Dashed arrows are cuts, solid ones training; a hollow point is a "
            "cut model that has not been trained since.",
            wide=True,
        )
        if picture
        else None,
    )


def _row(model: Model, run: Run, losses: Mapping[str, Loss]) -> list[object]:
    largest = run.reference
    base: Mapping[str, Any] = largest.evaluation if largest else {}
    own, loss = model.evaluation, losses.get(model.name)
    speed = _ratio(own.get("tokens_per_second"), base.get("tokens_per_second"))
    going = tag("span", "in progress", class_="badge going") if model.state == "begun" else None
    return [
        tag("span", model.name, " ", going, _under(VERB_WORDS[model.verb])),
        _with_share(_exact(model.parameters), _ratio(model.parameters, largest.parameters if largest else None)),
        _exact(model.facts.get("non_embedding_parameters")),
        _exact(model.facts.get("kv_bytes_per_token")),
        text.number(loss.value if loss else None),
        _with_share(text.share(own.get("accuracy")), _ratio(own.get("accuracy"), base.get("accuracy"))),
        tag("span", text.number(own.get("tokens_per_second"), ",.0f"), _under(f"{speed:.2f}×") if speed else None),
        tag(
            "span",
            text.count(model.tokens) if model.tokens else "–",
            _under(f"{text.flops(model.flops)} FLOPs") if model.flops else None,
        ),
    ]


def _ratio(value: Any, base: Any) -> float | None:
    """value / base, None where either is unknown."""
    return value / base if value is not None and base else None


def _exact(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"


def _under(words: str) -> Html:
    return tag("span", words, class_="under")


def _with_share(figure_text: str, value: float | None) -> Html | str:
    """A figure, and below it its share of the largest model's with a bar behind it."""
    if value is None:
        return figure_text
    width = f"--share:{min(1.0, max(0.0, value)) * 100:.1f}%"
    return tag("span", figure_text, tag("span", text.share(value), class_="under share", style=width))


def _cards(run: Run, losses: Mapping[str, Loss]) -> Html | None:
    """What the smallest finished model comes to, against the largest."""
    largest = run.reference
    trained = [m for m in run.models if m.verb != "prune" and m.state == "done" and m.parameters and m is not largest]
    if largest is None or not trained:
        return None
    small = min(trained, key=lambda m: m.parameters or 0)
    loss = losses.get(small.name), losses.get(largest.name)
    cards = [
        _share_card(small.parameters, largest.parameters, "of the parameters", text.count, "of"),
        _share_card(*_both("accuracy", small, largest), "of the task accuracy", text.share, "against"),
        _difference_card(loss[0].value, loss[1].value) if loss[0] and loss[1] else None,
        _speed_card(*_both("tokens_per_second", small, largest)),
        _share_card(small.tokens, largest.tokens, "of the training tokens", text.count, "of its own against"),
    ]
    heading = tag("p", tag("strong", small.name), " against ", tag("strong", largest.name), class_="versus")
    return join(heading, tag("ul", cards, class_="cards"))


def _both(figure_name: str, small: Model, largest: Model) -> tuple[float | None, float | None]:
    return small.evaluation.get(figure_name), largest.evaluation.get(figure_name)


def _share_card(
    mine: float | None, base: float | None, words: str, form: Callable[[float], str], between: str
) -> Html | None:
    ratio = _ratio(mine, base)
    if mine is None or base is None or ratio is None:
        return None
    return _card(text.share(ratio), words, f"{form(mine)} {between} {form(base)}")


def _difference_card(mine: float, base: float) -> Html:
    return _card(f"{mine - base:+.3f}", "nats per token of loss", f"{mine:.3f} against {base:.3f}")


def _speed_card(mine: float | None, base: float | None) -> Html | None:
    if not mine or not base:
        return None
    return _card(f"{mine / base:.2f}×", "the speed", f"{mine:,.0f} against {base:,.0f} tokens/s")


def _card(figure_text: str, words: str, detail: str) -> Html:
    return tag("li", tag("span", figure_text, class_="big"), tag("span", words), tag("span", detail, class_="quiet"))


def _notes(losses: Mapping[str, Loss]) -> Html | None:
    sources = {loss.source for loss in losses.values()}
    if "training" in sources:
        return tag(
            "p",
            "No evaluation has run yet: losses are those that training measured last on its own held-out windows.",
            class_="quiet",
        )
    if "evaluation" in sources:
        return tag(
            "p",
            "Loss is in nats per token, accuracy the mean of the tasks' main metrics, speed that of plain forward "
            "passes; all from the run's own evaluation. Tokens are those of the model's own training.",
            class_="quiet",
        )
    return None
