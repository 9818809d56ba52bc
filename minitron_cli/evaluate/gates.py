"""Gates for CI: `winogrande.acc >= 0.95 * reference` over the rows of an evaluation."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from minitron_cli.errors import MinitronError, near_matches

_COMPARE: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_GATE = re.compile(
    rf"\s*(?:(?P<model>[^:]+):)?(?P<quantity>[^\s<>=:]+)\s*(?P<op>>=|<=|>|<)\s*"
    rf"(?:(?P<factor>{_NUMBER})\s*(?P<times>\*\s*reference)?|(?P<reference>reference))\s*"
)


@dataclass(frozen=True, slots=True)
class Gate:
    """`[MODEL:]TASK.METRIC OP FACTOR [* reference]`; without MODEL it holds for every model but the reference."""

    text: str
    model: str | None
    quantity: str
    op: str
    factor: float
    relative: bool


@dataclass(frozen=True, slots=True)
class Verdict:
    """A gate on one model: what was measured, what was asked for, whether it holds."""

    gate: str
    model: str
    value: float
    bound: float
    passed: bool


def parse_gate(text: str) -> Gate:
    """Read one gate; a MinitronError shows the form."""
    found = _GATE.fullmatch(text)
    if not found:
        raise MinitronError(
            f"cannot read the gate {text!r}",
            'write it like "winogrande.acc >= 0.95 * reference" or "small:stories.bits_per_byte <= 1.2"',
        )
    relative = bool(found["times"] or found["reference"])
    factor = float(found["factor"]) if found["factor"] else 1.0
    return Gate(text.strip(), found["model"], found["quantity"], found["op"], factor, relative)


def refuse_models(gates: Sequence[Gate], models: Sequence[str]) -> None:
    """Refuse gates on models that are not evaluated, and those that compare the reference with itself."""
    for gate in gates:
        if gate.model is not None and gate.model not in models:
            raise MinitronError(
                f"the gate {gate.text!r} names the model {gate.model!r}, which is not evaluated",
                near_matches(gate.model, tuple(models)),
            )
        if gate.relative and (gate.model or models[-1]) == models[0]:
            raise MinitronError(
                f"the gate {gate.text!r} compares {models[0]} with the reference, which is {models[0]} itself",
                "give the reference first and the model to judge after it, or a bound without `reference`",
            )


def refuse_unknown(gates: Sequence[Gate], known: Mapping[str, Collection[str] | None]) -> None:
    """Refuse gates on figures that will not be measured, before anything is.

    `known` maps what will be measured (tasks, domains, "model") to the names of its figures, None where they are not
    known yet.
    """
    for gate in gates:
        figure = gate.quantity.rpartition(".")[2]
        names = [f"{what}.{each}" for what, figures in known.items() for each in (figures or (figure,))]
        if gate.quantity not in names:
            raise MinitronError(
                f"the gate {gate.text!r} names {gate.quantity!r}, which will not be measured",
                near_matches(gate.quantity, names),
            )


def check(gates: Sequence[Gate], values: Mapping[str, Mapping[str, float]]) -> list[Verdict]:
    """Judge `gates` over `values[model]["task.metric"]`, whose first model is the reference.

    A gate on what was not measured is an error that names what was: it never passes.
    """
    models = list(values)
    verdicts = []
    for gate in gates:
        chosen = [gate.model] if gate.model else (models[1:] or models)
        for model in chosen:
            value = _find(values, model, gate.quantity)
            bound = gate.factor * (_find(values, models[0], gate.quantity) if gate.relative else 1.0)
            verdicts.append(Verdict(gate.text, model, value, bound, _COMPARE[gate.op](value, bound)))
    return verdicts


def _find(values: Mapping[str, Mapping[str, float]], model: str, quantity: str) -> float:
    if model not in values:
        raise MinitronError(f"a gate names {model!r}, which was not evaluated", near_matches(model, tuple(values)))
    if quantity not in values[model]:
        raise MinitronError(
            f"a gate names {quantity!r}, which was not measured on {model}",
            near_matches(quantity, tuple(values[model])),
        )
    return values[model][quantity]
