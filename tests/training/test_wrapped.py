"""The text model inside a model of text and images is scored and trained; the rest comes out as it went in."""

from pathlib import Path

import pytest
import torch

from minitron_cli.checkpoint.rewrap import room
from minitron_cli.errors import MinitronError
from minitron_cli.families import family_of
from minitron_cli.training.run import train
from tests.importance.test_modes import assert_same, execution_of, resident_sums, stream
from tests.toys import make_toy, toy_ids
from tests.training.runs import check_export, options, write_text
from tests.wrapped import WRAPPED, image_batch, load_whole, make_wrapped, stored, text_type


@pytest.mark.parametrize("model_type", WRAPPED)
def test_an_untrained_student_is_exported_as_it_was(model_type: str, tmp_path: Path) -> None:
    source, out = make_wrapped(model_type, tmp_path / "source", dtype=torch.bfloat16), tmp_path / "out"
    check_export(source, out)
    assert {file.name for file in out.iterdir()} == {file.name for file in source.iterdir()}


@pytest.mark.parametrize("model_type", [name for name in WRAPPED if not family_of(text_type(name)).whole])
def test_streamed_is_resident(model_type: str, tmp_path: Path) -> None:
    execution = execution_of(make_wrapped(model_type, tmp_path / "source"), tmp_path)
    assert_same(resident_sums(execution), stream.run(execution, on_disk=False), rounding=1e-5)


def test_distillation_trains_the_text_model_alone(tmp_path: Path) -> None:
    student, teacher = (make_wrapped("gemma3", tmp_path / name, seed) for name, seed in (("one", 0), ("two", 1)))
    text = write_text(tmp_path / "text.jsonl")
    train(options(student, text, tmp_path / "out", teacher))
    before, after = stored(student), stored(tmp_path / "out")
    assert after.keys() == before.keys()
    for name in before:
        assert torch.equal(before[name], after[name]) is not name.startswith("language_model."), name
    with torch.no_grad():
        one, two, three = (
            load_whole(path)(toy_ids(2, 11), use_cache=False).logits for path in (tmp_path / "out", teacher, student)
        )
    assert (one - two).norm() < (three - two).norm()
    load_whole(tmp_path / "out")(**image_batch("gemma3"))


def test_the_forecast_of_the_disk_counts_what_stands_around(tmp_path: Path) -> None:
    source = make_wrapped("gemma3", tmp_path / "source")
    sizes = {name: t.nbytes for name, t in stored(source).items()}
    text = sum(n for name, n in sizes.items() if name.startswith("language_model."))
    assert room(source, text) == sum(sizes.values())
    assert room(make_toy("llama", tmp_path / "plain"), text) == 0


def test_from_scratch_is_refused(tmp_path: Path) -> None:
    source, text = make_wrapped("gemma3", tmp_path / "source"), write_text(tmp_path / "text.jsonl")
    with pytest.raises(MinitronError, match="model of text and images"):
        train(options(source, text, tmp_path / "out", from_scratch=True))
