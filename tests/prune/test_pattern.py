"""--keep-pattern: a depth cut leaves whole periods of the source's order of layers, or is refused."""

from collections.abc import Callable
from pathlib import Path

import pytest

from minitron_cli.checkpoint.reader import load_config, open_checkpoint
from minitron_cli.checkpoint.scores_file import write_scores
from minitron_cli.checkpoint.tensor_digests import source_digest
from minitron_cli.errors import MinitronError
from minitron_cli.prune.execute import dry_run, prune
from minitron_cli.prune.request import PruneRequest, request_from_options
from minitron_cli.spec.scores import Scores
from minitron_cli.spec.search import Window, candidates
from tests.prune.cutting import random_scores
from tests.prune.test_request import never

Toy = Callable[..., Path]

KINDS = {
    "gemma3_text": ("sliding_attention", "full_attention"),
    "qwen3_5_text": ("linear_attention", "full_attention"),
}


def _order(model_type: str, depth: int) -> list[str]:
    """Every third layer has full attention."""
    most, third = KINDS[model_type]
    return [third if (layer + 1) % 3 == 0 else most for layer in range(depth)]


def _deep(toy: Toy, model_type: str, depth: int = 8) -> Path:
    return toy(model_type, num_hidden_layers=depth, layer_types=_order(model_type, depth))


def scored(source: Path, directory: Path) -> Path:
    """Random scores of a toy, whose best layers by themselves leave its order."""
    values = random_scores(open_checkpoint(source).shape).values
    scores = Scores(values, {"model": {"name": source.name, "digest": source_digest(source)}})
    write_scores(directory / "scores.safetensors", scores)
    return directory / "scores.safetensors"


@pytest.mark.parametrize("model_type", KINDS)
@pytest.mark.parametrize("layers", [3, 5, 6])
def test_the_layers_that_stay_are_whole_periods(toy: Toy, tmp_path: Path, model_type: str, layers: int) -> None:
    source = _deep(toy, model_type)
    request = PruneRequest(
        model=str(source), layers=layers, scores=scored(source, tmp_path), keep_pattern=True, output=tmp_path / "small"
    )
    assert dry_run(request).facts.warnings == ()
    result = prune(request, never)
    assert load_config(tmp_path / "small")["layer_types"] == _order(model_type, layers)
    assert result.manifest["options"]["keep_pattern"] is True


def test_without_it_the_best_layers_stay_and_a_warning_says_what_that_means(toy: Toy, tmp_path: Path) -> None:
    source = _deep(toy, "gemma3_text")
    request = PruneRequest(model=str(source), layers=5, scores=scored(source, tmp_path), output=tmp_path / "small")
    facts = dry_run(request).facts
    assert any("in the source's periods of 3" in warning for warning in facts.warnings)
    assert facts.servable is not None
    assert facts.servable["engines"]["llama.cpp"]


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        ({"layers": 4}, "4 layers are not whole periods of 3", "nearest depths of whole periods: 3 or 5"),
        ({"drop-layers": "2-4"}, None, None),
        ({"drop-layers": "6-7"}, None, None),
        ({"drop-layers": "0,3,6"}, "without layers 0,3,6, the others are not in", "let --layers 5 choose"),
        ({"drop-layers": "7"}, "7 layers are not whole periods", "6 or 8"),
        ({}, "--keep-pattern is for cuts of depth", "add --layers N"),
        ({"hidden": 36}, "--keep-pattern is for cuts of depth", "add --layers N"),
    ],
)
def test_what_it_refuses(toy: Toy, options: dict, message: str | None, hint: str | None) -> None:
    model = str(_deep(toy, "gemma3_text"))
    if message is None:
        assert dry_run(request_from_options(model, {**options, "keep-pattern": True})).facts.warnings == ()
        return
    with pytest.raises(MinitronError, match=message) as refused:
        dry_run(request_from_options(model, {**options, "keep-pattern": True}))
    assert hint in str(refused.value.hint)


def test_a_list_that_breaks_the_order_is_warned_of(toy: Toy) -> None:
    model = str(_deep(toy, "gemma3_text"))
    assert dry_run(PruneRequest(model=model, drop_layers="0-2")).facts.warnings == ()
    (warning,) = dry_run(PruneRequest(model=model, drop_layers="0,3,6")).facts.warnings
    assert "--keep-pattern keeps whole periods" in warning


def test_layers_in_no_order_are_refused(toy: Toy) -> None:
    request = PruneRequest(model=str(toy("gemma3_text")), layers=2, keep_pattern=True)  # sliding, full, sliding
    with pytest.raises(MinitronError, match="no repeating order of kinds"):
        dry_run(request)


def test_layers_that_are_alike_have_an_order_that_nothing_breaks(toy: Toy) -> None:
    request = PruneRequest(model=str(toy("llama")), drop_layers="1", keep_pattern=True)
    assert dry_run(request).facts.warnings == ()


def test_a_budget_is_spent_on_whole_periods(toy: Toy) -> None:
    source = open_checkpoint(_deep(toy, "gemma3_text", 12))
    whole = candidates(source.family, source.config, source.shape, {"layer": [9]}, Window(0, float("inf")))[0]
    request = PruneRequest(model=str(source.path), params=round(0.99 * whole.parameters), keep_pattern=True)
    assert dry_run(request).shape["layer"] in (9, 12)
