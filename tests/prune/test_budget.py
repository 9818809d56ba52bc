"""`--params`: the shape is chosen among rounded ones, and a miss is said."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from minitron_cli.checkpoint.architecture import architecture_of
from minitron_cli.errors import MinitronError
from minitron_cli.prune.request import PruneRequest
from minitron_cli.prune.resolve import resolve

Toy = Callable[..., Path]


def _resolve(toy: Toy, params: int, multiple: int):
    model = architecture_of(json.loads((toy("llama") / "config.json").read_text()))
    return resolve(PruneRequest(model="x", params=params, multiple_of=multiple), model)


def test_the_shape_is_chosen_among_rounded_ones(toy: Toy) -> None:
    """Rounding a shape of the right size afterwards once ended 17% off."""
    found = _resolve(toy, 50_000, 8)
    assert all(found.shape[axis] % 8 == 0 for axis in ("hidden", "ffn"))
    assert abs(found.facts.parameters[1] / 50_000 - 1) <= 0.02
    assert not any("--params" in warning for warning in found.facts.warnings)


def test_a_miss_of_more_than_two_percent_is_said(toy: Toy) -> None:
    """The toy's heads are 6: with multiples of 32 the hidden size stays, and the neurons are 64 or 88."""
    found = _resolve(toy, 46_000, 32)
    made = found.facts.parameters[1]
    assert 0.02 < abs(made / 46_000 - 1) <= 0.1
    assert (
        f"--params 46,000: the nearest shape has {made:,} parameters, {made / 46_000 - 1:+.1%}" in found.facts.warnings
    )


def test_the_rest_of_a_budget_goes_to_the_other_axes_where_the_vocabulary_is_given(toy: Toy) -> None:
    found = {}
    for vocab in (97, 48):
        model = architecture_of(json.loads((toy("llama") / "config.json").read_text()))
        asked = {"vocab": vocab, "data": ("text.jsonl",)} if vocab < 97 else {}
        found[vocab] = resolve(PruneRequest(model="x", params=50_000, **asked), model)
        assert found[vocab].facts.parameters[1] == pytest.approx(50_000, rel=0.02)
        assert found[vocab].shape["vocab"] == vocab
    body = {vocab: one.facts.parameters[1] - 2 * vocab * one.shape["hidden"] for vocab, one in found.items()}
    assert body[48] > body[97]
    with pytest.raises(MinitronError, match="--params chooses the whole shape but its vocabulary"):
        PruneRequest(model="x", params=50_000, vocab=48, data=("text.jsonl",), ffn=40)


def test_a_size_that_no_shape_is_near_is_refused(toy: Toy) -> None:
    with pytest.raises(MinitronError, match="no shape of about 10,000 parameters"):
        _resolve(toy, 10_000, 1)


def test_a_budget_above_the_source_is_refused(toy: Toy) -> None:
    with pytest.raises(MinitronError, match="the source has only"):
        _resolve(toy, 10**9, 1)
