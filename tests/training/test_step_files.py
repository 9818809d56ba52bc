"""Step checkpoints that are damaged or made to harm: nothing runs, the damage is named, the step before is taken."""

import json
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from minitron_cli.checkpoint.provenance import file_digest
from minitron_cli.checkpoint.seal import DIGEST, sealed
from minitron_cli.errors import MinitronError
from minitron_cli.hf.process_group import World
from minitron_cli.training import state
from minitron_cli.training.export_run import export_step
from minitron_cli.training.run import train
from minitron_cli.training.step_files import STATE, open_tensors, shard_name, write_shard, write_state
from tests.training.runs import options, signal_after

Toy = Callable[..., Path]
SHARD = shard_name(0, 1)


@pytest.fixture(scope="module")
def stopped(toy: Toy, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped after step 9, with the checkpoints of steps 8 and 9."""
    output = tmp_path_factory.mktemp("stopped") / "out"
    with signal_after(9):
        train(options(toy("llama"), text, output, schedule="constant"))
    assert [p.name for p in state.checkpoints(output / "run")] == ["step-0000008", "step-0000009"]
    return output


def flip_a_byte(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def empty(step: Path) -> None:
    shutil.rmtree(step)
    step.mkdir()


def alter(file: Path, before: str, after: str) -> None:
    file.write_text(file.read_text().replace(before, after))


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a truncated shard": (lambda p: (p / SHARD).write_bytes((p / SHARD).read_bytes()[:-100]), SHARD),
    "a flipped byte in a shard": (lambda p: flip_a_byte(p / SHARD), SHARD),
    "a flipped byte in the state": (lambda p: flip_a_byte(p / STATE), STATE),
    "no shard": (lambda p: (p / SHARD).unlink(), SHARD),
    "no state": (lambda p: (p / STATE).unlink(), STATE),
    "an altered number": (lambda p: alter(p / STATE, '"step": 9', '"step": 7'), STATE),
    "an empty directory": (empty, STATE),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(
    name: str, toy: Toy, text: Path, stopped: Path, tmp_path: Path
) -> None:
    output = shutil.copytree(stopped, tmp_path / "out")
    harm, part = DAMAGE[name]
    harm(output / "run" / "step-0000009")
    said: list[str] = []
    outcome = train(options(toy("llama"), text, output, schedule="constant"), say=said.append)
    assert outcome.progress.step == 12
    (warning,) = (line for line in said if line.startswith("warning: "))
    assert "step-0000009" in warning
    assert part in warning
    assert "continuing from step 8 of 12" in said
    whole = shutil.copytree(stopped, tmp_path / "whole")
    train(options(toy("llama"), text, whole, schedule="constant"))
    one, other = (load_file(p / "model.safetensors") for p in (output, whole))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_without_a_whole_checkpoint_it_says_so(toy: Toy, text: Path, stopped: Path, tmp_path: Path) -> None:
    output = shutil.copytree(stopped, tmp_path / "out")
    for step in state.checkpoints(output / "run"):
        flip_a_byte(step / SHARD)
    with pytest.raises(MinitronError, match="no checkpoint of this run that is whole") as caught:
        train(options(toy("llama"), text, output, schedule="constant"))
    assert caught.value.hint == "start again with --overwrite"


def test_a_checkpoint_of_another_run_is_named_and_not_taken(
    toy: Toy, text: Path, stopped: Path, tmp_path: Path
) -> None:
    train(options(toy("llama"), text, tmp_path / "other", schedule="constant", seed=7, steps=12))
    output = shutil.copytree(stopped, tmp_path / "out")
    foreign = output / "run" / "step-0000012"
    shutil.copytree(tmp_path / "other" / "run" / foreign.name, foreign)
    line = options(toy("llama"), text, output, schedule="constant")
    message = f"{foreign} was made by a run of other options or inputs"
    with pytest.raises(MinitronError, match=re.escape(message)):
        export_step(line, 12)
    said: list[str] = []
    train(line, say=said.append)
    assert f"warning: {message}" in said
    assert "continuing from step 9 of 12" in said


def test_a_checkpoint_that_does_not_say_of_which_run_it_is_is_taken(
    toy: Toy, text: Path, stopped: Path, tmp_path: Path
) -> None:
    output = shutil.copytree(stopped, tmp_path / "out")
    file = output / "run" / "step-0000009" / STATE
    content = json.loads(file.read_text())
    del content["run"]
    file.write_text(json.dumps(sealed(content)))
    said: list[str] = []
    train(options(toy("llama"), text, output, schedule="constant"), say=said.append)
    assert "continuing from step 9 of 12" in said


@pytest.mark.parametrize("line", [b"not json\n", b'{"tokens": 1}\n', b"[]\n", b"\xff\xfe\n"])
def test_damaged_metrics_are_named(line: bytes, toy: Toy, text: Path, stopped: Path, tmp_path: Path) -> None:
    output = shutil.copytree(stopped, tmp_path / "out")
    with (output / "run" / "metrics.jsonl").open("ab") as stream:
        stream.write(line)
    with pytest.raises(MinitronError, match=r"metrics\.jsonl is damaged: line 10 is not a JSON object with a step"):
        train(options(toy("llama"), text, output, schedule="constant"))
    assert state.checkpoints(output / "run"), "what there is stays"


@pytest.mark.parametrize("inputs", [[1], {"student": 1}, "x"])
def test_damaged_digests_of_inputs_are_named(
    inputs: object, toy: Toy, text: Path, stopped: Path, tmp_path: Path
) -> None:
    output = shutil.copytree(stopped, tmp_path / "out")
    file = output / "run" / "options.json"
    started = {key: value for key, value in json.loads(file.read_text()).items() if key != DIGEST}
    file.write_text(json.dumps({**started, "inputs": inputs}))
    with pytest.raises(MinitronError, match=r"options\.json is damaged"):
        train(options(toy("llama"), text, output, schedule="constant"))


def test_options_that_were_edited_are_named(toy: Toy, text: Path, stopped: Path, tmp_path: Path) -> None:
    output = shutil.copytree(stopped, tmp_path / "out")
    alter(output / "run" / "options.json", '"steps": 12', '"steps": null')
    branch = options(
        toy("llama"), text, tmp_path / "branch", schedule="wsd", branch_from=str(output / "run" / "step-0000009")
    )
    for line in (options(toy("llama"), text, output, schedule="constant"), branch):
        with pytest.raises(MinitronError, match=r"options\.json was altered after it was written"):
            train(line)


class Bomb:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return (Path.write_text, (self.file, "unpickled"))


@pytest.mark.parametrize("sealing", [False, True], ids=["planted", "planted with matching digests"])
@pytest.mark.parametrize("file", [STATE, SHARD, ".metadata", "__0_0.distcp"])
def test_a_planted_pickle_never_runs(
    file: str, sealing: bool, toy: Toy, text: Path, stopped: Path, tmp_path: Path
) -> None:
    """Through resume, a branch and an export; also where whoever planted it has made every digest match."""
    output, evidence = shutil.copytree(stopped, tmp_path / "out"), tmp_path / "evidence"
    step = output / "run" / "step-0000009"
    (step / file).write_bytes(pickle.dumps(Bomb(evidence)))
    if sealing and file != STATE:
        content = json.loads((step / STATE).read_text())
        content["files"] = {SHARD: file_digest(step / SHARD)}
        (step / STATE).write_text(json.dumps(sealed(content)))
    line = options(toy("llama"), text, output, schedule="constant")
    branch = options(
        toy("llama"), text, tmp_path / "branch", schedule="wsd", warmup=1, steps=14, branch_from=str(step)
    )  # fmt: skip
    for act in (lambda: export_step(line, 9), lambda: train(branch), lambda: train(line)):
        try:
            act()
        except MinitronError:
            continue
    assert not evidence.exists()


@pytest.mark.parametrize("act", ["export", "branch"])
def test_a_damaged_checkpoint_that_was_asked_for_is_refused(
    act: str, toy: Toy, text: Path, stopped: Path, tmp_path: Path
) -> None:
    output = shutil.copytree(stopped, tmp_path / "out")
    step = output / "run" / "step-0000009"
    flip_a_byte(step / SHARD)
    line = options(toy("llama"), text, output, schedule="constant")
    branch = options(toy("llama"), text, tmp_path / "b", schedule="wsd", steps=99, branch_from=str(step))
    with pytest.raises(MinitronError, match=re.escape(SHARD)) as caught:
        export_step(line, 9) if act == "export" else train(branch)
    assert caught.value.hint == "other checkpoints of that run: step-0000008"
    assert not list(tmp_path.glob("out-step-*"))


def test_the_pickles_of_an_older_version_are_refused(toy: Toy, text: Path, stopped: Path, tmp_path: Path) -> None:
    output = shutil.copytree(stopped, tmp_path / "out")
    for step in state.checkpoints(output / "run"):
        (step / STATE).write_text(json.dumps(json.loads((step / STATE).read_text())["progress"]))
    with pytest.raises(MinitronError, match="older version of minitron, as pickles"):
        train(options(toy("llama"), text, output, schedule="constant"))


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_pieces_of_any_number_of_ranks_make_any_slice(size: int, tmp_path: Path) -> None:
    """Slicing the whole tensor is the oracle: shards of uneven rows, a scalar, an empty piece, three types."""
    whole = {
        "matrix": torch.randn(7, 5),
        "vector": torch.arange(3).to(torch.bfloat16),
        "counts": torch.arange(8, dtype=torch.int64).reshape(2, 2, 2),
    }
    files = {}
    for rank in range(size):
        mine = {name: part for name, t in whole.items() for part in t.chunk(size)[rank : rank + 1]}
        mine |= {"scalar": torch.tensor(2.5)} if rank == 0 else {}
        files[shard_name(rank, size)] = write_shard(tmp_path / shard_name(rank, size), mine)
    whole["scalar"] = torch.tensor(2.5)
    write_state(tmp_path, {}, {name: tuple(t.shape) for name, t in whole.items()}, files)
    stored = open_tensors(tmp_path, World())
    assert stored.keys() == whole.keys()
    for name, tensor in whole.items():
        flat = tensor.flatten()
        for start in range(len(flat) + 1):
            for count in range(len(flat) - start + 1):
                part = torch.empty(count, dtype=tensor.dtype)
                stored[name].read(start, part)
                assert torch.equal(part, flat[start : start + count]), (name, start, count)
