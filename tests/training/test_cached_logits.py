"""A teacher recorded once, and students that learn from the record; documents kept apart in a row."""

import json
import re
import resource
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from minitron_cli.errors import MinitronError
from minitron_cli.hf.process_group import World
from minitron_cli.training.cached_logits import store
from minitron_cli.training.cached_logits.record import record_teacher
from minitron_cli.training.metrics import read_metrics
from minitron_cli.training.rows import positions_in
from minitron_cli.training.run import prepare, rehearse, train
from tests.training.runs import options

Toy = Callable[..., Path]


def losses(output: Path) -> np.ndarray:
    return np.array([line["kd"] for line in read_metrics(output / "run")])


def test_all_but_one_id_teach_what_the_teacher_does(toy: Toy, text: Path, teacher: Path, tmp_path: Path) -> None:
    record_teacher(options(toy("llama"), text, tmp_path / "x", teacher, top_k=96), tmp_path / "top")
    train(options(toy("llama"), text, tmp_path / "live", teacher))
    train(options(toy("llama"), text, tmp_path / "recorded", tmp_path / "top"))
    np.testing.assert_allclose(losses(tmp_path / "recorded"), losses(tmp_path / "live"), rtol=2e-3)


def test_a_short_recording_is_a_lower_bound_and_smaller(toy: Toy, text: Path, teacher: Path, tmp_path: Path) -> None:
    found = record_teacher(options(toy("llama"), text, tmp_path / "x", teacher, top_k=8), tmp_path / "top")
    train(options(toy("llama"), text, tmp_path / "live", teacher, steps=2))
    train(options(toy("llama"), text, tmp_path / "recorded", tmp_path / "top", steps=2))
    assert losses(tmp_path / "recorded")[0] < losses(tmp_path / "live")[0]
    assert found.bytes == sum(f.stat().st_size for f in (tmp_path / "top").glob("top-*.bin"))
    assert found.bytes / (found.tokens * 31 / 32) == 8 * (2 + 2) + 2, "uint16 ids, float16 log-probabilities, a tail"


def test_what_is_recorded_is_the_models_own_distribution(toy: Toy, text: Path, teacher: Path, tmp_path: Path) -> None:
    line = options(toy("llama"), text, tmp_path / "x", teacher, top_k=5)
    record_teacher(line, tmp_path / "top")
    found = store.open_recording(tmp_path / "top")
    order = prepare(line, World(0, 1, torch.device("cpu"))).order
    files, windows = order.places(3)
    top = found.read(files, windows).at(slice(1, 3), torch.device("cpu"))
    with torch.no_grad():
        probs = AutoModelForCausalLM.from_pretrained(teacher)(torch.from_numpy(order.rows(3)[1:3])).logits.softmax(-1)
    expected = probs.topk(5).values[:, :-1]
    shape = (2, 32, 5)
    torch.testing.assert_close(top.log_probs.exp().view(shape)[:, :-1], expected, rtol=4e-3, atol=1e-5)
    torch.testing.assert_close(top.tail.exp().view(2, 32)[:, :-1], 1 - expected.sum(-1), rtol=2e-2, atol=2e-4)
    torch.testing.assert_close(top.log_probs.exp().sum(-1) + top.tail.exp(), torch.ones(64))


def test_an_interrupted_recording_goes_on_to_the_same_bytes(
    toy: Toy, text: Path, teacher: Path, tmp_path: Path
) -> None:
    line = options(toy("llama"), text, tmp_path / "x", teacher, top_k=8)
    record_teacher(line, tmp_path / "whole")
    record_teacher(line, tmp_path / "cut")
    data = tmp_path / "cut" / "top-0.bin"
    whole = data.read_bytes()
    data.write_bytes(whole[: len(whole) // 3])
    (tmp_path / "cut" / "header.json").unlink()
    assert not store.is_recording(tmp_path / "cut")
    record_teacher(line, tmp_path / "cut")
    assert data.read_bytes() == whole == (tmp_path / "whole" / "top-0.bin").read_bytes()
    with pytest.raises(MinitronError, match="holds a recording of something else"):
        record_teacher(replace(line, top_k=9), tmp_path / "cut")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 13}, "lacks"),
        ({"seed": 1}, "lacks"),
        ({"seq_len": 16}, "recorded from other data"),
        ({"temperature": 2.0}, "was recorded at temperature 1, not 2"),
        ({"loss": "logits+hidden"}, "needs the teacher's hidden states"),
        ({"cross_doc": False}, "was recorded with --cross-doc, this run has --no-cross-doc"),
    ],
)
def test_a_recording_that_does_not_fit_is_refused(
    changes: dict, message: str, toy: Toy, text: Path, teacher: Path, tmp_path: Path
) -> None:
    record_teacher(options(toy("llama"), text, tmp_path / "x", teacher, top_k=8), tmp_path / "top")
    with pytest.raises(MinitronError, match=re.escape(message)):
        train(options(toy("llama"), text, tmp_path / "out", tmp_path / "top", **changes))


def flip_a_byte(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


DAMAGE: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "a flipped byte": (lambda top, other: flip_a_byte(top / "top-0.bin"), "top-0.bin has changed"),
    "another teacher's": (
        lambda top, other: (top / "top-0.bin").write_bytes((other / "top-0.bin").read_bytes()),
        "top-0.bin has changed",
    ),
    "a header that was edited": (
        lambda top, other: (top / "header.json").write_text(
            (top / "header.json").read_text().replace('"seq_len": 32', '"seq_len": null')
        ),
        "header.json was altered after it was written",
    ),
    "windows missing": (lambda top, other: (top / "windows-0.npy").unlink(), "windows-0.npy cannot be read"),
    "windows empty": (lambda top, other: (top / "windows-0.npy").write_bytes(b""), "windows-0.npy cannot be read"),
    "windows backwards": (
        lambda top, other: np.save(top / "windows-0.npy", np.load(top / "windows-0.npy")[::-1]),
        "windows-0.npy does not hold numbers in ascending order",
    ),
}


@pytest.fixture(scope="module")
def recordings(toy: Toy, text: Path, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Recordings of two teachers over the windows of two steps."""
    place = tmp_path_factory.mktemp("recordings")
    for name, model in (("one", teacher), ("other", toy("llama"))):
        record_teacher(options(toy("llama"), text, place / "x", model, steps=2, top_k=8), place / name)
    return place / "one", place / "other"


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_recording_is_named_before_the_run_begins(
    damage: str, recordings: tuple[Path, Path], toy: Toy, text: Path, tmp_path: Path
) -> None:
    top = shutil.copytree(recordings[0], tmp_path / "top")
    harm, message = DAMAGE[damage]
    harm(top, recordings[1])
    line = options(toy("llama"), text, tmp_path / "out", top, steps=2)
    with pytest.raises(MinitronError, match=re.escape(message)):
        rehearse(line, 1)
    with pytest.raises(MinitronError, match=re.escape(message)):
        train(line)
    assert not (tmp_path / "out").exists()


def test_an_id_that_the_vocabulary_lacks_is_named_in_a_recording_without_digests(
    recordings: tuple[Path, Path], toy: Toy, text: Path, tmp_path: Path
) -> None:
    top = shutil.copytree(recordings[0], tmp_path / "top")
    header = json.loads((top / "header.json").read_text())
    (top / "header.json").write_text(json.dumps({k: v for k, v in header.items() if k not in ("files", "digest")}))
    (top / "top-0.bin").write_bytes(b"\xff" * (top / "top-0.bin").stat().st_size)
    with pytest.raises(MinitronError, match="it holds id 65535 of 97"):
        train(options(toy("llama"), text, tmp_path / "out", top, steps=2))


def test_records_beyond_the_plan_are_dropped_when_a_recording_goes_on(
    recordings: tuple[Path, Path], toy: Toy, text: Path, teacher: Path, tmp_path: Path
) -> None:
    top = shutil.copytree(recordings[0], tmp_path / "top")
    whole = (top / "top-0.bin").read_bytes()
    (top / "header.json").unlink()
    (top / "top-0.bin").write_bytes(whole * 2)
    record_teacher(options(toy("llama"), text, tmp_path / "x", teacher, steps=2, top_k=8), top)
    assert (top / "top-0.bin").read_bytes() == whole


def test_a_recording_that_the_system_cuts_off_says_which_file(
    toy: Toy, text: Path, teacher: Path, tmp_path: Path
) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    line = options(toy("llama"), text, tmp_path / "x", teacher, top_k=8)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, before[1]))
        with pytest.raises(MinitronError, match="top cannot be written: a file would exceed the size"):
            record_teacher(line, tmp_path / "top")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    record_teacher(line, tmp_path / "top")
    assert store.is_recording(tmp_path / "top")


def test_documents_kept_apart_teach_what_the_live_teacher_does(
    toy: Toy, text: Path, teacher: Path, tmp_path: Path
) -> None:
    apart = {"cross_doc": False, "seq_len": 128, "steps": 4}
    store_at, line = tmp_path / "top", options(toy("llama"), text, tmp_path / "x", teacher, top_k=96, **apart)
    record_teacher(line, store_at)
    train(options(toy("llama"), text, tmp_path / "live", teacher, **apart))
    train(options(toy("llama"), text, tmp_path / "recorded", store_at, **apart))
    # Cached values are float16.
    np.testing.assert_allclose(losses(tmp_path / "recorded"), losses(tmp_path / "live"), rtol=2e-3)
    # Negative control: joined documents teach something else.
    train(options(toy("llama"), text, tmp_path / "joined", teacher, **{**apart, "cross_doc": True}))
    assert abs(losses(tmp_path / "joined")[0] / losses(tmp_path / "live")[0] - 1) > 5e-3


def test_a_header_without_the_field_was_recorded_with_joined_documents(
    toy: Toy, text: Path, teacher: Path, tmp_path: Path
) -> None:
    line = options(toy("llama"), text, tmp_path / "x", teacher, top_k=8)
    record_teacher(line, tmp_path / "top")
    header = json.loads((tmp_path / "top" / "header.json").read_text())
    for newer in ("cross_doc", "draws", "power", "seed", "files", "digest"):
        del header[newer]
    (tmp_path / "top" / "header.json").write_text(json.dumps(header))
    assert store.open_recording(tmp_path / "top").header.cross_doc


def test_positions_start_again_with_each_document() -> None:
    documents = np.array([[0, 0, 0, 1, 1, 2], [0, 1, 1, 1, 1, 1]])
    assert positions_in(documents).tolist() == [[0, 1, 2, 0, 1, 0], [0, 0, 1, 2, 3, 4]]


def test_documents_kept_apart_are_as_if_read_alone(toy: Toy, text: Path, tmp_path: Path) -> None:
    """The loss of a step, against each document's piece of each row run through the model by itself."""
    line = options(toy("llama"), text, tmp_path / "out", steps=1, seq_len=128, cross_doc=False, warmup=0)
    found = train(line).progress.first
    assert found is not None
    order = prepare(line, World(0, 1, torch.device("cpu"))).order
    model = AutoModelForCausalLM.from_pretrained(toy("llama"))
    total, count = 0.0, 0
    for ids, documents in zip(order.rows(0), order.documents(0)):
        for document in np.unique(documents):
            piece = torch.from_numpy(ids[documents == document])[None]
            with torch.no_grad():
                log_probs = model(piece).logits[0, :-1].log_softmax(-1)
            total -= log_probs.gather(1, piece[0, 1:, None]).sum().item()
            count += piece.shape[1] - 1
    assert len(np.unique(order.documents(0))) > 1, "no row holds two documents: nothing is tested"
    assert found["ce"] == pytest.approx(total / count, rel=1e-5)


@pytest.mark.parametrize("record", ["top-k", "sampled:16"])
def test_parts_of_several_processes_become_the_bytes_of_one(
    record: str, toy: Toy, text: Path, teacher: Path, tmp_path: Path
) -> None:
    """Parts as processes leave them when they are killed, in the middle of a record or of joining."""
    line = options(toy("llama"), text, tmp_path / "x", teacher, top_k=8)
    record_teacher(line, tmp_path / "whole", record)
    top = shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    recording = store.open_recording(top)
    (top / "header.json").unlink()
    (file,) = top.glob("*-0.bin")
    whole, ends = file.read_bytes(), recording.ends[0]
    assert len(ends) == 48
    file.write_bytes(whole[: ends[9] + 5])  # 10 records, and a piece of the next
    for begin, end in ((4, 8), (8, 21), (30, 35)):  # the first is after what was joined before
        part = whole[ends[begin - 1] : ends[end - 1]] + whole[ends[end - 1] : ends[end - 1] + 3]
        file.with_stem(f"{file.stem}-{begin}").write_bytes(part)
    left = store.missing(top, recording.header, recording.windows, 2)
    assert [one.start for one in left] == [20, 22, 24, 26, 28, 34, 36, 38, 40, 42, 44, 46]
    record_teacher(line, top, record)
    assert {p.name: p.read_bytes() for p in top.iterdir()} == {
        p.name: p.read_bytes() for p in (tmp_path / "whole").iterdir()
    }
