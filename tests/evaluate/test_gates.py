"""Gates: what they accept, what they judge, and that nothing passes for want of a figure."""

import pytest

from minitron_cli.errors import MinitronError
from minitron_cli.evaluate.gates import check, parse_gate

VALUES = {
    "big": {"winogrande.acc": 0.80, "stories.bits_per_byte": 1.0},
    "mid": {"winogrande.acc": 0.77, "stories.bits_per_byte": 1.05},
    "small": {"winogrande.acc": 0.60, "stories.bits_per_byte": 1.3},
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("winogrande.acc >= 0.95 * reference", {"mid": True, "small": False}),
        ("winogrande.acc<reference", {"mid": True, "small": True}),
        ("winogrande.acc > 0.7", {"mid": True, "small": False}),
        ("small:stories.bits_per_byte <= 1.25*reference", {"small": False}),
        ("big:winogrande.acc >= 8e-1", {"big": True}),
    ],
)
def test_gates_are_judged(text: str, expected: dict[str, bool]) -> None:
    assert {v.model: v.passed for v in check([parse_gate(text)], VALUES)} == expected


def test_a_single_model_is_judged_itself() -> None:
    (verdict,) = check([parse_gate("winogrande.acc >= 0.9")], {"big": VALUES["big"]})
    assert (verdict.model, verdict.passed, verdict.bound) == ("big", False, 0.9)


@pytest.mark.parametrize("text", ["winogrande.acc", "winogrande.acc = 0.5", "acc >= reference * 2", ">= 0.5", "a >= b"])
def test_a_gate_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(MinitronError, match="cannot read the gate"):
        parse_gate(text)


@pytest.mark.parametrize("text", ["winogrand.acc >= 0.5", "tiny:winogrande.acc >= 0.5"])
def test_what_was_not_measured_is_an_error(text: str) -> None:
    with pytest.raises(MinitronError, match=r"not (measured|evaluated)") as caught:
        check([parse_gate(text)], VALUES)
    assert "winogrande.acc" in caught.value.hint or "known" in caught.value.hint
