"""Models of text and images: the text model is cut, an image still goes through, and what stands beside it stays."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from minitron_cli.__main__ import run as minitron
from minitron_cli.chain.shear import complete
from minitron_cli.checkpoint.describe import describe
from minitron_cli.checkpoint.provenance import read_manifest
from minitron_cli.checkpoint.reader import load_config, open_checkpoint
from minitron_cli.checkpoint.scores_file import write_scores
from minitron_cli.errors import MinitronError
from minitron_cli.families import family_of
from minitron_cli.hf.load import load_model
from minitron_cli.importance.baselines import following_scores, magnitude_scores
from minitron_cli.prune.compensate import open_compensation
from minitron_cli.prune.directions import by_directions
from minitron_cli.prune.execute import dry_run, prune
from minitron_cli.prune.mask import masked_source
from minitron_cli.prune.request import PruneRequest
from minitron_cli.prune.target import Target, make_plan, target_shape
from minitron_cli.prune.verify import verify
from minitron_cli.prune.write import write_pruned
from minitron_cli.spec.axes import FLAG_OF_AXIS, axes_of
from minitron_cli.spec.plan import Plan
from minitron_cli.spec.scores import Scores
from tests.prune.cutting import difference, load, logits_of, plan_for, prune_to, random_scores
from tests.prune.test_compensate import measure, random_rows
from tests.toys import keep_all, toy_ids
from tests.training.runs import options
from tests.wrapped import (
    IMAGE,
    WRAPPED,
    TextView,
    image_batch,
    load_whole,
    make_wrapped,
    sizes_for,
    spelled,
    stored,
    text_type,
)

TOLERANCE = 2e-5  # float32, relative to the spread of the logits
Wrapped = Callable[..., Path]


@pytest.fixture(scope="session")
def wrapped(tmp_path_factory: pytest.TempPathFactory) -> Wrapped:
    """wrapped("gemma3") -> directory of a toy model of text and images, made once. Do not write into it."""
    made: dict[str, Path] = {}

    def get(model_type: str) -> Path:
        if model_type not in made:
            made[model_type] = make_wrapped(model_type, tmp_path_factory.mktemp(model_type))
        return made[model_type]

    return get


@torch.no_grad()
def image_logits(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return model(**batch, use_cache=False).logits


# The cuts that each text model has are tested with its family; here are those that have to do with what is around it.
CASES = [(name, cut) for name in WRAPPED for cut in ("hidden", "layer", "expert", "all") if sizes_for(name, cut)]


@pytest.mark.parametrize(("model_type", "cut"), CASES)
def test_trim_equals_mask_for_text_and_for_images(model_type: str, cut: str, wrapped: Wrapped, tmp_path: Path) -> None:
    source = wrapped(model_type)
    checkpoint = open_checkpoint(source)
    plans = (plan_for(checkpoint, sizes_for(model_type, cut), seed) for seed in range(9))
    # After its first layer, Qwen3-VL's image features enter again: it stays.
    plan = next(plan for plan in plans if plan.kept.get("layer", [0])[0] == 0)
    write_pruned(checkpoint, plan, tmp_path / "small")
    small, source_model = load_whole(tmp_path / "small"), load_whole(source)
    batch = image_batch(model_type)
    whole, ids = image_logits(source_model, batch), toy_ids(2, 11)
    view = TextView(source_model)
    masked = masked_source(view, checkpoint.family, plan)  # in place, so that the whole model is masked
    if "projector" in plan.kept:
        second = source_model.model.multi_modal_projector.linear_2.weight
        second.data[:, np.setdiff1d(np.arange(48), plan.kept["projector"])] = 0
    with torch.no_grad():
        assert difference(small(ids, use_cache=False).logits, masked(ids)) < TOLERANCE
    view.images = {name: value for name, value in batch.items() if name != "input_ids"}
    expected = masked(batch["input_ids"])
    assert difference(image_logits(small, batch), expected) < TOLERANCE
    assert difference(expected, whole) > 1e-2, "the cut changed nothing: the test proves nothing"
    other = image_batch(model_type, seed=1) | {"input_ids": batch["input_ids"]}
    assert difference(image_logits(small, other), expected) > 1e-2, "the image changes nothing"


@pytest.mark.parametrize("model_type", WRAPPED)
def test_what_stands_beside_the_text_model_keeps_its_bytes(model_type: str, wrapped: Wrapped, tmp_path: Path) -> None:
    source = wrapped(model_type)
    prune_to(source, tmp_path / "small", sizes_for(model_type, "all"))
    before, after, checkpoint = stored(source), stored(tmp_path / "small"), open_checkpoint(source)
    cut = [name for name, match in checkpoint.beside.items() if any(map(axes_of, match.weight.dims))]
    assert cut
    for name in checkpoint.beside:
        assert torch.equal(before[name], after[name]) is (name not in cut), name
    assert (tmp_path / "small" / "preprocessor_config.json").read_text() == '{"size": 8}\n'


def test_transposed_experts_are_written_transposed_where_their_shape_can_tell(wrapped: Wrapped, tmp_path: Path) -> None:
    """Of square matrices transformers takes it that they are not: 2 x 16 rows for 32 channels."""
    source, name = wrapped("qwen3_vl_moe"), "model.language_model.layers.0.mlp.experts.gate_up_proj"
    assert stored(source)[name].shape == (5, 48, 64)
    for hidden, shape in ((36, (5, 36, 32)), (32, (5, 32, 32))):
        out = tmp_path / str(hidden)
        plan = prune_to(source, out, {"hidden": hidden, "expert_ffn": 16})
        assert stored(out)[name].shape == shape
        with torch.no_grad():
            masked = masked_source(TextView(load_whole(source)), open_checkpoint(source).family, plan)
            whole, alone = load_whole(out), load_model(out, torch.float32)
            found, text = (model(toy_ids(2, 11), use_cache=False).logits for model in (whole, alone))
            assert difference(found, masked(toy_ids(2, 11))) < TOLERANCE
        assert difference(text, found) < 1e-6


@pytest.mark.parametrize("model_type", WRAPPED)
def test_names_are_written_as_they_were_read(model_type: str, wrapped: Wrapped, tmp_path: Path) -> None:
    source = wrapped(model_type)
    wrapping = open_checkpoint(source).wrapping
    assert wrapping is not None
    others = [one for one in wrapping.wrapper.prefixes if one != wrapping.prefixes]
    if not others:
        pytest.skip("its names have always begun so")
    (after,) = others
    other = spelled(Path(shutil.copytree(source, tmp_path / "other")), wrapping.prefixes, after)
    assert stored(other).keys().isdisjoint(stored(source).keys() - {"lm_head.weight"})
    prune_to(source, tmp_path / "one", sizes_for(model_type, "all"))
    prune_to(other, tmp_path / "two", sizes_for(model_type, "all"))
    assert stored(tmp_path / "two").keys() <= stored(other).keys()
    batch = image_batch(model_type)
    assert (
        difference(
            image_logits(load_whole(tmp_path / "two"), batch),
            image_logits(load_whole(tmp_path / "one"), batch),
        )
        == 0
    )


@pytest.mark.parametrize("model_type", WRAPPED)
def test_the_text_model_alone_is_the_text_of_the_whole(model_type: str, wrapped: Wrapped, tmp_path: Path) -> None:
    source, sizes = wrapped(model_type), {**sizes_for(model_type, "hidden"), "layer": 2}
    checkpoint = open_checkpoint(source)
    plan = plan_for(checkpoint, sizes)
    alone = checkpoint.unwrapped()
    write_pruned(checkpoint, plan, tmp_path / "whole")
    write_pruned(alone, plan_for(alone, sizes), tmp_path / "text")
    config = json.loads((tmp_path / "text" / "config.json").read_text())
    assert config["model_type"] == load_config(source)["model_type"] != model_type
    model = load(tmp_path / "text")
    assert config["architectures"] == [type(model).__name__]
    with torch.no_grad():
        expected = load_whole(tmp_path / "whole")(toy_ids(2, 11), use_cache=False).logits
    assert difference(logits_of(tmp_path / "text"), expected) < 1e-6
    assert not (tmp_path / "text" / "preprocessor_config.json").exists()
    assert open_checkpoint(tmp_path / "text").wrapping is None


@pytest.mark.parametrize("model_type", WRAPPED)
def test_a_second_cut_and_verify(model_type: str, wrapped: Wrapped, tmp_path: Path) -> None:
    source = wrapped(model_type)
    drop = "1" if model_type == "gemma4" else "0"  # a layer of each kind stays
    first = PruneRequest(model=str(source), drop_layers=drop, output=tmp_path / "first", check=True)
    prune(first, never)
    scores = tmp_path / "scores.safetensors"
    write_scores(scores, random_scores(open_checkpoint(tmp_path / "first").shape))
    width = sizes_for(model_type, "hidden")
    again = PruneRequest(
        model=str(tmp_path / "first"),
        hidden=width["hidden"],
        heads=width.get("head"),
        scores=scores,
        force=True,
        output=tmp_path / "second",
    )
    facts = dry_run(again).facts
    result = prune(again, never)
    assert result.facts == facts
    assert facts.bytes[1] == sum(t.nbytes for t in stored(tmp_path / "second").values())
    assert any("--text-only" in warning for warning in facts.warnings)
    for model, origin in (("first", source), ("second", tmp_path / "first")):
        assert verify(tmp_path / model, str(origin), forward=True).problems == []
    load_whole(tmp_path / "second")
    changed = tmp_path / "second" / "model.safetensors"
    changed.write_bytes(changed.read_bytes()[:-1] + b"\7")
    assert verify(tmp_path / "second", str(tmp_path / "first")).problems


def never(wanted: object) -> None:
    raise AssertionError("nothing has to be measured")


@pytest.mark.parametrize("model_type", WRAPPED)
def test_text_only_alone_cuts_nothing(model_type: str, wrapped: Wrapped, tmp_path: Path) -> None:
    source = wrapped(model_type)
    request = PruneRequest(model=str(source), text_only=True, output=tmp_path / "text")
    assert dry_run(request).facts == prune(request, never).facts
    with torch.no_grad():
        expected = load_whole(source)(toy_ids(2, 11), use_cache=False).logits
    assert difference(logits_of(tmp_path / "text"), expected) < 1e-6
    assert read_manifest(tmp_path / "text")["options"] == {"target": {}, "force": False, "text_only": True}
    assert verify(tmp_path / "text", str(source), forward=True).problems == []
    with pytest.raises(MinitronError, match="a text model already"):
        dry_run(PruneRequest(model=str(tmp_path / "text"), text_only=True))


def test_importance_prune_and_inspect_by_the_command_line(wrapped: Wrapped, tmp_path, capsys) -> None:
    source, scores, text = wrapped("gemma3"), tmp_path / "s.safetensors", tmp_path / "t.txt"
    text.write_text("the cat sat on a mat and then it was gone. " * 200)
    given = ["--data", str(text), "--samples", "4", "--seq-len", "16"]
    assert minitron(["importance", str(source), *given, "-o", str(scores)]) == 0
    cut = ["prune", str(source), "--hidden", "36", "--ffn", "56", "--scores", str(scores)]
    assert minitron([*cut, "-o", str(tmp_path / "small"), "--check"]) == 0
    assert minitron([*cut, "-o", str(tmp_path / "text"), "--check", "--text-only"]) == 0
    capsys.readouterr()
    for model in (source, tmp_path / "small"):
        assert minitron(["inspect", str(model)]) == 0
        assert "beside the text model (gemma3)" in capsys.readouterr().out
    assert describe(open_checkpoint(tmp_path / "text"), 0)["beside"] is None
    assert (
        describe(open_checkpoint(tmp_path / "text"), 0)["parameters"]
        == (describe(open_checkpoint(tmp_path / "small"), 0)["parameters"])
    )


def test_where_features_of_images_enter_again_a_cut_of_layers_says_so(wrapped: Wrapped) -> None:
    request = PruneRequest(model=str(wrapped("qwen3_vl")), drop_layers="0")
    assert any("after each of the first layers" in warning for warning in dry_run(request).facts.warnings)
    width = replace(request, drop_layers=None, vocab=None, text_only=True)
    assert not any("after each of the first layers" in warning for warning in dry_run(width).facts.warnings)


def test_neurons_of_a_projector_are_ranked_by_their_weights(wrapped: Wrapped, tmp_path: Path) -> None:
    source, weights = open_checkpoint(wrapped("llava")), stored(wrapped("llava"))
    one, two = (weights[f"multi_modal_projector.linear_{i}.weight"].double() for i in (1, 2))
    expected = (one.norm(dim=1) * two.norm(dim=0)).numpy()
    np.testing.assert_allclose(following_scores(source)["projector"], expected)
    np.testing.assert_allclose(magnitude_scores(source)["projector"], expected)
    scores = Scores({**random_scores(source.shape).values, "projector": expected})
    wanted = Target({"hidden": 36})
    plan = make_plan(source.shape, target_shape(source, wanted), wanted, scores)
    assert set(plan.kept["projector"]) == set(np.argsort(-expected)[:36])
    write_scores(tmp_path / "s.safetensors", scores)
    request = PruneRequest(model=str(source.path), hidden=36, scores=tmp_path / "s.safetensors")
    assert any("12 of them go too" in warning for warning in dry_run(request).facts.warnings)
    assert not any("of them go" in w for w in dry_run(replace(request, text_only=True)).facts.warnings)
    note = next(axis["note"] for axis in describe(source, 0)["axes"] if axis["axis"] == "projector")
    assert note == "with --hidden"
    with pytest.raises(MinitronError, match="no masks can be learned"):
        complete(options(source.path, tmp_path, tmp_path, verb="shear", sizes=("ffn=56",)))


@pytest.mark.parametrize("model_type", WRAPPED)
def test_a_cut_vocabulary_takes_the_ids_of_images_along(model_type: str, wrapped: Wrapped, tmp_path: Path) -> None:
    source = Path(shutil.copytree(wrapped(model_type), tmp_path / "source"))
    for file in source.glob("tokenizer*"):
        file.unlink()  # a toy's has words, which cannot be cut
    checkpoint, batch = open_checkpoint(source), image_batch(model_type)
    kept = np.sort(np.unique([*range(4), *batch["input_ids"].unique().tolist(), *range(90, 94)]))
    shape = checkpoint.shape
    plan = Plan(shape, shape.with_(vocab=len(kept)), {"vocab": kept})
    write_pruned(checkpoint, plan, tmp_path / "small")
    ids = torch.as_tensor(np.searchsorted(kept, batch["input_ids"]))
    expected = image_logits(load_whole(source), batch)[..., kept]
    assert difference(image_logits(load_whole(tmp_path / "small"), batch | {"input_ids": ids}), expected) < TOLERANCE
    before, after = (json.loads((path / "config.json").read_text()) for path in (source, tmp_path / "small"))
    key = "image_token_index" if "image_token_index" in before else "image_token_id"
    assert kept[after[key]] == before[key] == IMAGE


ROTATES = [name for name in WRAPPED if family_of(text_type(name)).norms]


@pytest.mark.parametrize("model_type", ROTATES)
def test_the_projector_is_turned_with_the_residual_stream(model_type: str, wrapped: Wrapped, tmp_path: Path) -> None:
    """With all directions kept the function stays, for images too; with fewer the result loads and follows."""
    source = wrapped(model_type)
    checkpoint, batch = open_checkpoint(source), image_batch(model_type)
    by = open_compensation(measure(source, tmp_path / "s.safetensors", random_rows(24, 16)), 1e-9)
    plan = by_directions(checkpoint, keep_all(checkpoint.shape), 48, by)
    assert np.abs(plan.basis - np.eye(48)).max() > 0.1
    write_pruned(checkpoint, plan, tmp_path / "turned", compensation=by)
    expected = image_logits(load_whole(source), batch)
    assert difference(image_logits(load_whole(tmp_path / "turned"), batch), expected) < 1e-3
    cut = ["prune", str(source), "--compensate", "least-squares", "--rotate", "--ridge", "1e-9"]
    cut += [word for axis, n in sizes_for(model_type, "hidden").items() for word in (f"--{FLAG_OF_AXIS[axis]}", str(n))]
    scores = random_scores(checkpoint.shape)
    write_scores(tmp_path / "s.safetensors", scores)
    given = ["--scores", str(tmp_path / "s.safetensors"), "--moments", str(tmp_path / "s.moments"), "--force"]
    assert minitron([*cut, *given, "-o", str(tmp_path / "small")]) == 0
    assert verify(tmp_path / "small", str(source), forward=True).problems == []
    load_whole(tmp_path / "small")(**batch)
