"""Limits of options: what is refused and what is said of it."""

import math
from dataclasses import dataclass, replace
from typing import Annotated, Any

import pytest

from minitron_cli.spec.limits import OneOf, Within, above, count, violations


@dataclass(frozen=True)
class Sample:
    rate: Annotated[float, above(0)] = 1.0
    share: Annotated[float, Within(0, 1, open_high=False)] = 1.0
    clip: Annotated[float, Within(0, open_low=True, open_high=False)] = 1.0
    steps: Annotated[int | None, count(1, 10)] = None
    pair: Annotated[tuple[float, float], Within(0, 1)] = (0.0, 0.5)
    word: Annotated[str, OneOf(("a", "b"))] = "a"
    free: str = "anything"


@pytest.mark.parametrize(
    ("field", "value", "demand"),
    [
        ("rate", 0, "above 0"),
        ("rate", math.nan, "above 0"),
        ("rate", math.inf, "finite"),
        ("rate", True, "a number"),
        ("rate", "1", "a number"),
        ("share", 1.5, "at most 1"),
        ("share", -0.1, "at least 0"),
        ("steps", 0, "at least 1"),
        ("steps", 11, "at most 10"),
        ("steps", 1.5, "a whole number"),
        ("pair", (0.5, 1.0), "below 1"),
        ("word", "c", "one of a, b"),
    ],
)
def test_refused_in_words(field: str, value: Any, demand: str) -> None:
    found = violations(replace(Sample(), **{field: value}), lambda name: f"--{name}")
    assert found == [f"--{field} must be {demand}; got {value!r}"]


def test_ends_that_belong_and_what_is_not_given_pass() -> None:
    assert violations(Sample(share=0.0, clip=math.inf, steps=10, rate=1), str) == []


def test_every_offender_is_named_in_order() -> None:
    found = violations(Sample(rate=-1, steps=0, word=""), str)
    assert [fault.split()[0] for fault in found] == ["rate", "steps", "word"]
