"""What a run will need: against what it takes, and refused in time."""

import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from minitron_cli.checkpoint.reader import list_tensors
from minitron_cli.errors import MinitronError
from minitron_cli.hf.process_group import World
from minitron_cli.training import announce
from minitron_cli.training.chunks import CHUNK_BYTES, chunk_size
from minitron_cli.training.export import gather
from minitron_cli.training.load import load_student, load_teacher
from minitron_cli.training.optimizer import build
from minitron_cli.training.preflight import memory, size_of, size_of_config
from minitron_cli.training.prepare import prepare
from minitron_cli.training.run import train
from minitron_cli.training.state import model_tensors, prime
from minitron_cli.training.step import kd_step
from tests.training.runs import options, write_text

Toy = Callable[..., Path]
ALONE = World(0, 1, torch.device("cpu"))
LLAMA_8B = {
    **{"model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336},
    **{"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128},
}
NEMOTRON_15B = {
    **{"model_type": "nemotron", "vocab_size": 256000, "hidden_size": 6144, "intermediate_size": 24576},
    **{"num_hidden_layers": 32, "num_attention_heads": 48, "num_key_value_heads": 8, "head_dim": 128},
}
MINITRON_8B = {**NEMOTRON_15B, "hidden_size": 4096, "intermediate_size": 16384}
LLAMA_4B = {**LLAMA_8B, "hidden_size": 3072, "intermediate_size": 9216}


def test_sizes_are_the_models_own(toy: Toy) -> None:
    for path in (toy("llama"), toy("qwen2")):
        assert size_of(path, 32).parameters == load_student(path, from_scratch=False, seed=0).num_parameters()  # type: ignore[operator]


def test_weights_optimizer_and_teacher_are_what_torch_holds(toy: Toy) -> None:
    student, teacher = (
        load_student(toy("llama"), from_scratch=False, seed=0),
        load_teacher(toy("llama"), torch.bfloat16),
    )
    step = kd_step(student, teacher)
    optimizer = build(step, (), (0.9, 0.95), 1e-8, 0.1)
    prime(optimizer)
    size = size_of(toy("llama"), 32)
    need = memory(size, [], tokens=32, world=1, item=4, teacher_item=2, shard_teacher=False, checkpointing=False)
    assert need.weights == sum(t.numel() * t.element_size() for t in model_tensors(step).values())
    moments = [s[k] for s in optimizer.state.values() for k in ("exp_avg", "exp_avg_sq")]
    assert need.optimizer == sum(t.numel() * t.element_size() for t in moments)
    held = memory(size, [size], tokens=0, world=1, item=4, teacher_item=2, shard_teacher=False, checkpointing=False)
    assert held.teacher == sum(p.numel() * p.element_size() for p in teacher.parameters())
    assert gather(step, torch.bfloat16, keep=False) == {}


def need_8b(**changes: object) -> float:
    given = {
        "tokens": 8192,
        "world": 1,
        "item": 2,
        "teacher_item": 2,
        "shard_teacher": False,
        "checkpointing": True,
        "accumulated": False,
        **changes,
    }
    student, teacher = size_of_config(LLAMA_4B, 8192), size_of_config(LLAMA_8B, 8192)
    return memory(student, [teacher], **given).total() / 1e9  # type: ignore[arg-type]


def test_the_loss_takes_the_chunks_that_are_counted() -> None:
    for device, chunk in CHUNK_BYTES.items():
        assert 0.9 * chunk < 16 * 32000 * chunk_size(10**6, 32000, device, None) <= chunk


def test_the_published_pair_in_round_figures() -> None:
    """4.5B with AdamW in float32 is 18 bytes a parameter, the 8B teacher 16 GB; sharding divides the first by eight."""
    assert 95 < need_8b() < 115
    assert 30 < need_8b(world=8) < 40
    assert need_8b(world=8) - need_8b(world=8, shard_teacher=True) == pytest.approx(16.06 * 7 / 8, rel=0.01)
    assert need_8b(checkpointing=False) > need_8b() + 20
    # While micro-batches add up, every device holds the 4.5B gradient whole, or an eighth of it.
    sharded, whole = (need_8b(world=8, accumulated=True, gradients=mode) for mode in ("sharded", "whole"))
    assert whole - sharded == pytest.approx(4.51 * 4 * 7 / 8, rel=0.01)


def test_a_student_that_tasks_grade_is_whole_on_the_first_device(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In units of its 4.51B parameters: on one of 64 devices 12/64 bytes for it and 2 to be graded, beside the
    teacher's whole 16.06 GB; with activations kept, a step takes more. On a CPU one more copy is in host memory.
    """
    monkeypatch.setattr(announce, "_LARGEST_BLOCK", 0)
    graded = need_8b(world=64, graded=2, tokens=0)
    assert graded == pytest.approx(4.51 * (12 / 64 + 2) + 16.06, rel=0.002)
    assert need_8b(world=64, tokens=0) < graded
    assert need_8b(world=8, checkpointing=False, graded=2) == need_8b(world=8, checkpointing=False)
    line = options(toy("llama"), write_text(tmp_path / "text.jsonl"), tmp_path / "out")
    plain = prepare(line, ALONE)
    tasked = prepare(replace(line, eval_tasks="arc_easy"), ALONE)
    more = announce.host_memory(tasked, ALONE)[0] - announce.memory(tasked, ALONE).total()
    assert more == 4 * plain.trained


def test_disk_has_the_students_that_are_exported_on_the_way(toy: Toy, tmp_path: Path) -> None:
    line = options(toy("llama"), write_text(tmp_path / "text.jsonl"), tmp_path / "out")
    plain, more = (
        announce.facts(prepare(replace(line, export_at=at), ALONE), ALONE)["disk"] for at in ((), ("5,50%", "10"))
    )
    assert more - plain == 3 * sum(info.num_bytes for info in list_tensors(toy("llama")).values())


def test_8b_from_15b_on_eight_devices_by_hand() -> None:
    """Minitron-8B from Nemotron-4-15B, one sequence of 4096 tokens a device, bf16: every part in GB."""
    student, teacher = size_of_config(MINITRON_8B, 4096), size_of_config(NEMOTRON_15B, 4096)
    layer = (2 * 4096 * 6144 + 2 * 4096 * 1024 + 2 * 4096 * 16384 + 4 * 4096) / 1e9  # q o, k v, up down, two norms
    ends = (2 * 256000 * 4096 + 2 * 4096) / 1e9
    taught = (2 * 256000 * 6144 + 2 * 6144) / 1e9 + 32 * (
        (2 * 6144 * 6144 + 2 * 6144 * 1024 + 2 * 6144 * 24576 + 4 * 6144) / 1e9
    )
    assert ends + 32 * layer == pytest.approx(8.272, abs=1e-3)
    assert taught == pytest.approx(15.629, abs=1e-3)
    block = 4096 * 2 * (8 * 4096 + 2 * (48 + 8) * 128 + 4 * 16384) / 1e9
    parts = {
        "weights": 4 * 8.272 / 8,
        "optimizer": 8 * 8.272 / 8,
        "gathered": 2 * (ends + 2 * layer),
        "gradients": 4 * 8.272,
        "teacher": 2 * 15.629 / 8 + 2 * 256000 * 6144 / 1e9,
        "activations": 32 * block + 4096 * 4096 * 4 * 2 / 1e9,
        "loss": (4 + 2) * 256000 * 4096 / 1e9 + 4096 * 2 * (4096 + 6144) / 1e9,
    }
    given = {"tokens": 4096, "world": 8, "item": 2, "teacher_item": 2, "shard_teacher": True, "checkpointing": False}
    whole = memory(student, [teacher], **given)  # type: ignore[arg-type]
    assert {name: value / 1e9 for name, value in asdict(whole).items()} == pytest.approx(parts, rel=1e-3)
    assert whole.total() / 1e9 == pytest.approx(93.5, abs=0.1)  # does not fit 80 GB
    sharded = memory(student, [teacher], gradients="sharded", **given)  # type: ignore[arg-type]
    assert sharded.total() / 1e9 == pytest.approx(93.5 - 4 * 8.272 * 7 / 8, abs=0.1)  # does


def test_how_gradients_add_up_follows_from_what_is_free(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = options(toy("llama"), write_text(tmp_path / "text.jsonl"), tmp_path / "out", batch=4, micro_batch=1)
    world = World(0, 2, torch.device("cpu"), 2)
    ready = prepare(line, world)
    whole, sharded = (replace(ready, options=replace(ready.options, gradients=mode)) for mode in ("whole", "sharded"))
    needs = [announce.memory(one, world).total() for one in (whole, sharded)]
    assert needs[0] > needs[1]
    for free, expected in ((2 * needs[0], "whole"), (2 * needs[0] - 2, "sharded")):
        monkeypatch.setattr(announce, "free_memory", lambda device, free=free: free)
        assert announce.settle(ready, world).options.gradients == expected
        assert announce.settle(ready, world, agree=lambda short: True).options.gradients == "sharded"
        assert announce.settle(whole, world).options.gradients == "whole"


def test_what_does_not_fit_is_refused_with_the_largest_part_first_and_what_would(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = write_text(tmp_path / "text.jsonl")
    line = options(toy("llama"), text, tmp_path / "out", batch=64, micro_batch=32, seq_len=128, gradients="whole")
    ready = prepare(line, ALONE)
    one_row = tuple(replace(stretch, micro_batch=1) for stretch in ready.stretches)
    short = announce.memory(replace(ready, stretches=one_row), ALONE).total()
    monkeypatch.setattr(announce, "free_memory", lambda device: short)
    with pytest.raises(MinitronError, match=r"cpu has .* GB free \(activations") as caught:
        announce.check_room(ready, ALONE)
    assert f"--micro-batch 1 makes it {short / 1e9:.1f} GB" in caught.value.hint
    assert "--gradients sharded" not in caught.value.hint


def test_the_finished_student_must_fit_into_the_host(toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ready = prepare(options(toy("llama"), write_text(tmp_path / "text.jsonl"), tmp_path / "out"), ALONE)
    first, other = announce.host_memory(ready, World(0, 2, torch.device("cuda"), 2))
    assert first == max(other, ready.sizes[0].parameters * (4 + 4))
    monkeypatch.setattr(announce, "free_host_memory", lambda: 1000)
    with pytest.raises(MinitronError, match="the first process holds the finished student"):
        announce.check_room(ready, ALONE)


def test_a_run_that_does_not_fit_is_refused_before_it_begins(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(announce, "free_memory", lambda device: 1000)
    line = options(toy("llama"), write_text(tmp_path / "text.jsonl"), tmp_path / "out", steps=1)
    with pytest.raises(MinitronError, match="a step needs about"):
        train(line)
    assert not (tmp_path / "out").exists()
    train(line, preflight=False)


@pytest.fixture
def small_disk(tmp_path: Path) -> Path:
    """A file system of one megabyte, where this user may mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = shutil.which("mount")
    if (
        mount is None
        or os.geteuid() != 0
        or subprocess.run([mount, "-t", "tmpfs", "-o", "size=1m", "none", str(place)]).returncode
    ):
        pytest.skip("needs the right to mount a tmpfs")
    yield place  # type: ignore[misc]
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_is_found_before_the_first_step(toy: Toy, tmp_path: Path, small_disk: Path) -> None:
    line = options(toy("llama"), write_text(tmp_path / "text.jsonl"), small_disk / "out", steps=1)
    with pytest.raises(MinitronError, match="free"):
        train(line)
    assert list(small_disk.iterdir()) == []


def test_a_disk_that_fills_up_keeps_the_last_checkpoint(toy: Toy, tmp_path: Path, small_disk: Path) -> None:
    """Found at the checkpoint that no longer fits; with room again the same line goes on from the one before."""
    text, blocker = write_text(tmp_path / "text.jsonl"), small_disk / "blocker"
    subprocess.run(["mount", "-o", "remount,size=16m", str(small_disk)], check=True)
    line = options(toy("llama"), text, small_disk / "out", save_every=4)
    say_count = iter(range(100))

    def fill(_: str) -> None:
        if next(say_count) == 0:
            blocker.write_bytes(b"0" * (14 << 20))

    with pytest.raises(MinitronError, match="free"):
        train(line, preflight=False, say=fill)
    assert not (small_disk / "out" / "minitron.json").exists()
    blocker.unlink()
    assert train(line).progress.step == 12
