"""Resident, streamed, streamed from disk, interrupted and resumed, in two processes: the same scores."""

import os
import socket
import subprocess
import sys
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch

from minitron_cli.checkpoint.reader import open_checkpoint
from minitron_cli.checkpoint.scores_file import read_scores
from minitron_cli.errors import MinitronError
from minitron_cli.families import family_of
from minitron_cli.hf import stream as blockwise
from minitron_cli.hf.load import load_model
from minitron_cli.hf.process_group import World
from minitron_cli.hf.samples import Samples
from minitron_cli.importance import resident, stream
from minitron_cli.importance.execution import Execution, choose
from minitron_cli.importance.forecast import needs
from minitron_cli.importance.snapshot import Snapshot
from tests.toys import TOY_CONFIGS, toy_ids

CPU = torch.device("cpu")


def execution_of(path, tmp_path, samples=None, batch_size=2):
    samples = samples or Samples(toy_ids(5, 9).numpy())
    identity = {"model": {"digest": "x"}, "data": {}, "work": "test"}
    return Execution(
        open_checkpoint(path), samples, CPU, torch.float32, batch_size, World(),
        Snapshot(tmp_path / "partial", identity), tmp_path / "states", lambda text: None, lambda fraction, rate: None,
    )  # fmt: skip


def resident_sums(execution):
    return resident.run(execution, load_model(execution.checkpoint.path, execution.dtype, CPU))


# A layer alone is a model of its own, whose weights are at other addresses, and in which transformers may multiply in
# another order. On some processors products of matrices round by the alignment of their operands: equal but for that.
ROUNDING = 1e-5


def assert_same(one, other, rounding=0.0):
    assert one.rows == other.rows
    assert one.raw.keys() == other.raw.keys()
    for axis, sums in one.raw.items():
        np.testing.assert_allclose(sums, other.raw[axis], rtol=rounding, atol=0, err_msg=axis)


@pytest.mark.parametrize("family", [name for name in TOY_CONFIGS if not family_of(name).whole])
def test_streamed_is_resident(toy, family, tmp_path):
    execution = execution_of(toy(family), tmp_path)
    assert_same(resident_sums(execution), stream.run(execution, on_disk=False), ROUNDING)


@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen3_moe"])
def test_streamed_from_disk_with_padding_is_resident(toy, family, tmp_path):
    samples = Samples(toy_ids(3, 9).numpy(), ((0, 9), (2, 9), (0, 4)))
    execution = execution_of(toy(family), tmp_path, samples)
    assert_same(resident_sums(execution), stream.run(execution, on_disk=True), ROUNDING)
    assert not execution.scratch.exists()


class Killed(Exception):
    pass


def test_a_killed_stream_goes_on_at_its_layer(toy, tmp_path):
    execution = execution_of(toy("llama"), tmp_path)
    whole = resident_sums(execution)

    def die(fraction, rate):
        if fraction > 0.5:
            raise Killed

    with pytest.raises(Killed):
        stream.run(replace(execution, show=die), on_disk=True)
    assert execution.snapshot.load().done == 1
    said = []
    assert_same(whole, stream.run(replace(execution, say=said.append), on_disk=True), ROUNDING)
    assert said == ["going on at layer 1 of an interrupted run"]


def test_a_killed_resident_pass_goes_on_at_its_sample(toy, tmp_path, monkeypatch):
    execution = execution_of(toy("llama"), tmp_path, batch_size=2)
    whole = resident_sums(execution)
    monkeypatch.setattr(resident, "SECONDS", 0.0)

    def die(fraction, rate):
        if fraction > 0.7:
            raise Killed

    with pytest.raises(Killed):
        resident_sums(replace(execution, show=die))
    assert execution.snapshot.load().done == 2
    said = []
    assert_same(whole, resident_sums(replace(execution, say=said.append)))
    assert said == ["going on after sample 2 of an interrupted run"]


def test_a_snapshot_of_other_work_is_not_used(toy, tmp_path, monkeypatch):
    execution = execution_of(toy("llama"), tmp_path)
    monkeypatch.setattr(resident, "SECONDS", 0.0)
    resident_sums(execution)
    assert execution.snapshot.load() is not None
    other = replace(execution.snapshot, identity={**execution.snapshot.identity, "samples": 7})
    assert other.load() is None


def test_the_mode_follows_the_memory(toy, tmp_path):
    execution = execution_of(toy("llama"), tmp_path)
    need = needs(execution.checkpoint, 18, 45, 4)
    tensors = execution.checkpoint.num_bytes
    assert need.model == tensors
    assert choose("auto", need, CPU).name == "resident"
    assert choose("auto", need, CPU, whole="why").name == "resident"
    with pytest.raises(MinitronError, match="cannot be streamed: why"):
        choose("stream", need, CPU, whole="why")
    wide = replace(need, model=10**9, block=10**6, batch=10**5, states=10**3)
    assert choose("auto", wide, CPU, limit=10**8).name == "stream"
    assert choose("auto", replace(wide, states=9 * 10**7), CPU, limit=10**8).on_disk
    with pytest.raises(MinitronError, match="even one block at a time"):
        choose("auto", wide, CPU, limit=10**6)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["resident", "stream"])
def test_two_processes_are_one(toy, tmp_path, mode):
    """torchrun's environment, set by hand: two gloo ranks share the samples and write one file."""
    data = tmp_path / "text.jsonl"
    data.write_text("".join(f'{{"text": "the cat sat on mat number {i} "}}\n' for i in range(40)))
    line = [sys.executable, "-m", "minitron_cli", "importance", str(toy("llama")), "--data", str(data)]
    line += ["--samples", "7", "--seq-len", "16", "--separator", "none", "--batch-size", "2", "--mode", mode]
    line += ["--depth-block", "1"] if mode == "resident" else []
    subprocess.run([*line, "-o", str(tmp_path / "one")], check=True, capture_output=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    line += ["-o", str(tmp_path / "two")]
    places = [{**os.environ, **place, "RANK": rank} for rank in ("0", "1")]
    ranks = [subprocess.Popen(line, stdout=subprocess.PIPE, env=environment) for environment in places]
    printed = [process.communicate(timeout=300)[0] for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0]
    assert printed[0]
    assert not printed[1]
    (one, raw_one), (two, raw_two) = read_scores(tmp_path / "one"), read_scores(tmp_path / "two")
    for axis in one.values:
        np.testing.assert_allclose(one.values[axis], two.values[axis], rtol=1e-6)
    for name in raw_one:
        np.testing.assert_allclose(raw_one[name], raw_two[name], rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_one_layer_is_gone_before_the_next_is_built(toy, family, tmp_path, monkeypatch):
    built, original = [], blockwise.build_block

    def build(*args):
        assert not built or built[-1]() is None, "the layer before is still there"
        block = original(*args)
        built.append(weakref.ref(block.module))
        return block

    monkeypatch.setattr(blockwise, "build_block", build)
    stream.run(execution_of(toy(family), tmp_path), on_disk=False)
    assert len(built) == 3
