"""`minitron shear`, from text to a trimmed model: exact shape, settled masks, and the same bytes however it ran."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from minitron_cli import api
from minitron_cli.chain.shear import complete, shear
from minitron_cli.checkpoint.provenance import read_plan
from minitron_cli.checkpoint.reader import open_checkpoint
from minitron_cli.checkpoint.scores_file import write_scores
from minitron_cli.checkpoint.tensor_digests import source_digest
from minitron_cli.errors import MinitronError
from minitron_cli.prune.verify import verify
from minitron_cli.spec.scores import Scores
from minitron_cli.training.metrics import read_metrics
from minitron_cli.training.options import Options
from minitron_cli.training.run import rehearse, train
from tests.prune.cutting import random_scores
from tests.training.runs import options, signal_after

Toy = Callable[..., Path]
SIZES = ("ffn=56", "heads=4", "hidden=36", "layers=2")


def line(student: Path, text: Path, output: Path, **changes: Any) -> Options:
    """A run of 12 steps whose masks are far from settled."""
    return options(student, text, output, **{"verb": "shear", "sizes": SIZES, "max_gap": 1.0, **changes})


def bytes_of(output: Path) -> bytes:
    return (output / "model.safetensors").read_bytes()


def test_the_result_is_a_pruned_model_like_any_other(toy: Toy, text: Path, tmp_path: Path) -> None:
    source, out = toy("llama"), tmp_path / "out"
    outcome = shear(line(source, text, out, eval_data=(str(text),), eval_windows=2))
    shape = open_checkpoint(out).shape
    assert {axis: shape[axis] for axis in ("hidden", "ffn")} == {"hidden": 36, "ffn": 56}
    assert {axis: shape[axis] for axis in ("head", "layer", "kv")} == {"head": 4, "layer": 2, "kv": 2}
    found = verify(out, str(out / "run" / "masked"), forward=True)
    assert not found.problems
    assert [step["verb"] for step in found.lineage] == [None, "shear"]
    plan = read_plan(out)
    assert plan is not None
    assert plan.source == open_checkpoint(source).shape
    assert outcome.after is not None
    # The last evaluation was of the masked model in memory; transformers loads the trimmed one and finds the same.
    assert outcome.progress.last is not None
    assert {name for name in outcome.progress.last if name.startswith("gap_")} == {
        "gap_hidden", "gap_layer", "gap_head", "gap_ffn",
    }  # fmt: skip
    assert shear(line(source, text, out, eval_data=(str(text),), eval_windows=2)).was_done
    assert json.loads((out / "minitron.json").read_text())["training"]["steps"] == 12


def test_stopped_and_resumed_it_is_the_same_bytes(toy: Toy, text: Path, tmp_path: Path) -> None:
    source = toy("llama")
    shear(line(source, text, tmp_path / "whole"))
    with signal_after(5):
        stopped = train(complete(line(source, text, tmp_path / "again")), trim=lambda *_, **__: None)
    assert stopped.stopped_by
    shear(line(source, text, tmp_path / "again"))
    assert bytes_of(tmp_path / "again") == bytes_of(tmp_path / "whole")
    # Negative control: other draws are another model.
    shear(line(source, text, tmp_path / "other", mask_warmup=3))
    assert bytes_of(tmp_path / "other") != bytes_of(tmp_path / "whole")


def test_micro_batches_do_not_matter(toy: Toy, text: Path, tmp_path: Path) -> None:
    source = toy("llama")
    for micro in (1, 4):
        shear(line(source, text, tmp_path / str(micro), micro_batch=micro, steps=4))
    one, other = (load_file(tmp_path / str(micro) / "model.safetensors") for micro in (1, 4))
    assert read_plan(tmp_path / "1").kept.keys() == read_plan(tmp_path / "4").kept.keys()  # type: ignore[union-attr]
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("more", [{"checkpoint_activations": True}, {"dtype": "bfloat16"}], ids=str)
def test_activation_checkpointing_and_bfloat16(more: dict[str, Any], toy: Toy, text: Path, tmp_path: Path) -> None:
    source = toy("llama")
    for name, changes in (("plain", {}), ("changed", more)):
        shear(line(source, text, tmp_path / name, steps=3, **changes))
    one, other = (read_metrics(tmp_path / name / "run") for name in ("plain", "changed"))
    exact = "dtype" not in more
    for a, b in zip(one, other):
        assert a["ce"] == pytest.approx(b["ce"], abs=1e-6 if exact else 2e-2)
        assert a["gap_ffn"] == pytest.approx(b["gap_ffn"], abs=1e-7 if exact else 5e-3)
    if exact:
        assert bytes_of(tmp_path / "plain") == bytes_of(tmp_path / "changed")


def test_the_source_teaches(toy: Toy, text: Path, tmp_path: Path) -> None:
    """All masks are all but open at first: the student is nearly its teacher."""
    source = toy("llama")
    shear(line(source, text, tmp_path / "out", teacher=source, loss="logits"))
    first = read_metrics(tmp_path / "out" / "run")[0]
    assert 0 < first["kd"] < 0.2 * first["ce"]


def test_from_python(toy: Toy, text: Path, tmp_path: Path) -> None:
    """Sizes as keywords, as a user writes them; the same bytes as by the options of the trainer."""
    source, run = toy("llama"), {"steps": 3, "batch": 4, "micro_batch": 2, "seq_len": 32, "lr": 1e-3, "device": "cpu"}
    sizes = {"hidden": 36, "ffn": "56", "heads": 4, "layers": 2}
    given = {**run, **sizes, "data": text, "max_gap": 1.0, "save_every": 4, "loss": "logits"}
    api.shear(source, output=tmp_path / "api", **given)
    shear(line(source, text, tmp_path / "options", teacher=source, loss="logits", steps=3))
    assert bytes_of(tmp_path / "api") == bytes_of(tmp_path / "options")
    with pytest.raises(MinitronError, match="--loss hidden is unknown"):
        api.shear(source, output=tmp_path / "no", **{**given, "loss": "hidden"})


def test_masks_start_by_scores(toy: Toy, text: Path, tmp_path: Path) -> None:
    source = toy("llama")
    shape = open_checkpoint(source).shape
    scores = random_scores(shape)
    for name, digest in (("right", source_digest(source)), ("wrong", "0" * 64)):
        write_scores(tmp_path / name, Scores(dict(scores.values), {"model": {"name": "toy", "digest": digest}}))
    # Masks that hardly move keep what the scores keep.
    still = {"mask_lr": 1e-6, "scores": str(tmp_path / "right"), "steps": 3, "sizes": ("ffn=56",)}
    shear(line(source, text, tmp_path / "out", **still))
    plan = read_plan(tmp_path / "out")
    assert plan is not None
    assert plan.kept["ffn"].tolist() == [sorted((-row).argsort(kind="stable")[:56]) for row in scores.values["ffn"]]
    with pytest.raises(MinitronError, match="was measured on another model"):
        shear(line(source, text, tmp_path / "wrong-out", scores=str(tmp_path / "wrong")))
    assert not (tmp_path / "wrong-out").exists()


def test_masks_that_have_not_settled_are_refused_and_can_be_cut_all_the_same(
    toy: Toy, text: Path, tmp_path: Path
) -> None:
    source, out = toy("llama"), tmp_path / "out"
    with pytest.raises(MinitronError, match=r"not settled .* 12 updates: .*--ffn") as refused:
        shear(line(source, text, out, max_gap=0.05))
    assert "--max-gap" in str(refused.value.hint)
    assert not (out / "minitron.json").exists()
    shear(line(source, text, out, max_gap=1.0))
    assert open_checkpoint(out).shape["ffn"] == 56


REFUSED = [
    ({"sizes": ()}, "no target size is given"),
    ({"sizes": ("ffn=56", "experts=2")}, "llama models have no --experts"),
    ({"sizes": ("hidden=48",)}, "nothing is cut"),
    ({"sizes": ("hidden=64",)}, "larger than the source's"),
    ({"sizes": ("heads=5",)}, "does not divide by the 2 KV groups"),
    ({"compile": True}, "--compile does not go with learned masks"),
    ({"mask_warmup": 12}, "--mask-warmup 12 is as long as the run"),
    ({"mask_lr": 0.0}, "--mask-lr must be above 0"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=str)
def test_what_cannot_be_done_is_said_before_anything_is_written(
    changes: dict[str, Any], message: str, toy: Toy, text: Path, tmp_path: Path
) -> None:
    for attempt in (shear, lambda wanted: rehearse(complete(wanted), 1)):
        with pytest.raises(MinitronError, match=message):
            attempt(line(toy("llama"), text, tmp_path / "out", **changes))
        assert not (tmp_path / "out").exists()


def test_experts_per_token_stay(toy: Toy, text: Path, tmp_path: Path) -> None:
    with pytest.raises(MinitronError, match="how many experts a token is routed to"):
        shear(line(toy("mixtral"), text, tmp_path / "out", sizes=("experts=3", "experts-per-token=1")))


def test_of_layers_of_several_kinds_the_width_is_learned(toy: Toy, text: Path, tmp_path: Path) -> None:
    source, out = toy("lfm2"), tmp_path / "out"
    shear(line(source, text, out, sizes=("ffn=56", "heads=4", "hidden=36"), steps=3))
    assert not verify(out, str(out / "run" / "masked"), forward=True).problems
    with pytest.raises(MinitronError, match="cannot cut the layers of a lfm2 model"):
        shear(line(source, text, tmp_path / "no", sizes=("layers=2",)))


SETTLING = [
    ("llama", ("hidden=36", "ffn=56", "heads=4", "kv-heads=2", "layers=2")),
    ("llama", ("heads=3", "kv-heads=1")),
    ("qwen2_moe", ("experts=4", "expert-ffn=16", "shared-ffn=32", "hidden=36")),
]


@pytest.mark.slow
@pytest.mark.parametrize(("model_type", "sizes"), SETTLING, ids=str)
def test_gaps_close_on_every_axis(
    model_type: str, sizes: tuple[str, ...], toy: Toy, text: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shear(line(toy(model_type), text, out, sizes=sizes, steps=300, seq_len=16, micro_batch=4, max_gap=0.03))
    last = read_metrics(out / "run")[-1]
    gaps = {name: value for name, value in last.items() if name.startswith("gap_")}
    assert gaps
    assert max(map(abs, gaps.values())) < 0.03
    shutil.rmtree(out)
