"""What a run will need: against what it takes, and refused in time."""

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from minitron_cli.errors import MinitronError
from minitron_cli.training import announce
from minitron_cli.training.export import gather
from minitron_cli.training.fused import chunk_size
from minitron_cli.training.load import load_student, load_teacher
from minitron_cli.training.optimizer import build
from minitron_cli.training.preflight import LOSS_CHUNK, check_memory, memory, size_of, size_of_config
from minitron_cli.training.run import train
from minitron_cli.training.state import model_tensors, prime
from minitron_cli.training.step import kd_step
from tests.training.runs import options, write_text

Toy = Callable[..., Path]
LLAMA_8B = {
    **{"model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336},
    **{"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128},
}
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
    assert gather(step, torch.bfloat16, rank=1) == {}


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
    for device, chunk in LOSS_CHUNK.items():
        assert 0.9 * chunk < 16 * 32000 * chunk_size(10**6, 32000, device, None) <= chunk


def test_the_published_pair_in_round_figures() -> None:
    """4.5B with AdamW in float32 is 18 bytes a parameter, the 8B teacher 16 GB; sharding divides the first by eight."""
    assert 95 < need_8b() < 115
    assert 25 < need_8b(world=8) < 35
    assert need_8b(world=8) - need_8b(world=8, shard_teacher=True) == pytest.approx(16.06 * 7 / 8, rel=0.01)
    assert need_8b(checkpointing=False) > need_8b() + 20
    # While micro-batches add up, every device holds the 4.5B gradient whole and not an eighth of it.
    assert need_8b(world=8, accumulated=True) - need_8b(world=8) == pytest.approx(4.51 * 4 * 7 / 8, rel=0.01)
    assert need_8b(accumulated=True) == need_8b()


def test_what_does_not_fit_is_refused_with_the_largest_part_first() -> None:
    student = size_of_config(LLAMA_4B, 8192)
    need = memory(student, [], tokens=8192, world=1, item=2, teacher_item=2, shard_teacher=False, checkpointing=True)
    check_memory(need, need.total(), "cuda:0")
    with pytest.raises(MinitronError, match=re.escape("cuda:0 has 80.0 GB free (optimizer 36.1 GB, weights")) as caught:
        check_memory(need, 80_000_000_000, "cuda:0")
    assert "--nproc" in caught.value.hint


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
