"""The loop's arithmetic: invariances that other trainers break, low precision, the guard on bad steps."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from minitron_cli.errors import MinitronError
from minitron_cli.hf.parts import blocks_of
from minitron_cli.hf.process_group import World
from minitron_cli.training import loop
from minitron_cli.training.interrupt import StopFlag
from minitron_cli.training.load import load_student, load_teacher, run_again_in_backward
from minitron_cli.training.loop import Job
from minitron_cli.training.objectives import Objective
from minitron_cli.training.optimizer import build, is_spike, trainer
from minitron_cli.training.rows import Share
from minitron_cli.training.schedule import Schedule
from minitron_cli.training.state import Progress, prime
from minitron_cli.training.step import kd_step
from minitron_cli.training.stretches import Stretch
from tests.toys import toy_ids

Toy = Callable[..., Path]
ALONE = World(0, 1, torch.device("cpu"))


def unequal_mask(rows: int, length: int, seed: int = 0) -> Tensor:
    """Rows with very different numbers of predicted tokens, one with a single one."""
    lengths = np.random.default_rng(seed).integers(1, length, rows)
    lengths[0] = 1
    mask = torch.zeros(rows, length)
    for row, count in enumerate(lengths):
        mask[row, :count] = 1.0
    mask[:, -1] = 0.0
    return mask


def job(toy: Toy, *, micro_batch: int = 2, cast_to: torch.dtype | None = None, checkpointing: bool = False) -> Job:
    student = load_student(toy("llama"), from_scratch=False, seed=0)
    if checkpointing:
        run_again_in_backward(blocks_of(student))
    teacher = load_teacher(toy("llama", hidden_size=66, seed=5), torch.float32)
    step = kd_step(student, teacher, Objective(layer_map=((1, 1),), embedding=True, alpha=0.5))
    optimizer = build(step, (), (0.9, 0.95), 1e-8, 0.1)
    prime(optimizer)
    return Job(
        step=step,
        train=trainer(step, cast_to),
        optimizer=optimizer,
        schedule=Schedule("constant", 1e-3, 1e-4, 0, 20),
        rows=lambda step: Share(toy_ids(8, 24, seed=step), unequal_mask(8, 24, seed=step)),
        stretches=(Stretch(0, 20, 8, 24, micro_batch, flops_per_token=1.0),),
        grad_clip=1.0,
        spike_guard=None,
        seed=0,
        world=ALONE,
    )


def gradients(of: Job) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    share = of.rows(0)
    terms = loop.accumulate(of, share, share.num_targets(), of.at(0).micro_batch)
    return {name: p.grad for name, p in of.step.named_parameters() if p.grad is not None}, terms


def relative(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    flat = [torch.cat([g.float().flatten() for g in grads.values()]) for grads in (one, other)]
    return float((flat[0] - flat[1]).norm() / flat[0].norm())


@pytest.mark.parametrize("micro_batch", [1, 2, 4])
def test_gradients_do_not_depend_on_the_micro_batch(micro_batch: int, toy: Toy) -> None:
    """Rows of unequal length: a mean over micro-batches would be wrong by far more than rounding."""
    whole, terms = gradients(job(toy, micro_batch=8))
    split, split_terms = gradients(job(toy, micro_batch=micro_batch))
    assert relative(whole, split) < 2e-6
    for name, value in terms.items():
        torch.testing.assert_close(split_terms[name], value, rtol=1e-5, atol=1e-7)


def test_a_mean_over_micro_batches_would_be_seen(toy: Toy) -> None:
    """The negative control of the test above."""
    of = job(toy, micro_batch=1)
    whole, _ = gradients(of)
    of.optimizer.zero_grad()
    share = of.rows(0)
    for row in range(8):
        weights = share.mask[row : row + 1]
        of.train(share.ids[row : row + 1], weights / weights.sum() / 8)
    wrong = {name: p.grad for name, p in of.step.named_parameters() if p.grad is not None}
    assert relative(whole, wrong) > 0.1


def test_activation_checkpointing_changes_nothing(toy: Toy) -> None:
    plain, _ = gradients(job(toy))
    again, _ = gradients(job(toy, checkpointing=True))
    assert relative(plain, again) < 1e-6


@pytest.mark.parametrize("checkpointing", [False, True])
def test_low_precision_reaches_the_float32_weights(checkpointing: bool, toy: Toy) -> None:
    """bfloat16 compute: float32 gradients near the exact ones, also where layers run again in the backward pass."""
    exact, _ = gradients(job(toy))
    of = job(toy, cast_to=torch.bfloat16, checkpointing=checkpointing)
    low, _ = gradients(of)
    assert {g.dtype for g in low.values()} == {torch.float32}
    assert {p.dtype for p in of.step.parameters()} == {torch.float32}
    assert 1e-4 < relative(exact, low) < 3e-2


def test_accumulation_in_low_precision_is_in_float32(toy: Toy) -> None:
    """Eight micro-batches add up without rounding each sum to bfloat16."""
    once, _ = gradients(job(toy, micro_batch=8, cast_to=torch.bfloat16))
    split, _ = gradients(job(toy, micro_batch=1, cast_to=torch.bfloat16))
    assert relative(once, split) < 2e-2


def run(of: Job, steps: int) -> tuple[Progress, list[dict[str, float]]]:
    seen: list[dict[str, float]] = []
    of = replace(of, schedule=replace(of.schedule, steps=steps))
    return loop.run(of, Progress(), StopFlag(), lambda _, values: seen.append(dict(values))), seen


def test_the_norm_is_the_global_one_and_is_clipped(toy: Toy) -> None:
    of = job(toy)
    grads, _ = gradients(of)
    expected = torch.cat([g.flatten() for g in grads.values()]).norm().item()
    of.optimizer.zero_grad()
    _, seen = run(of, 1)
    assert seen[0]["grad_norm"] == pytest.approx(expected, rel=1e-5)


def test_vectors_do_not_decay(toy: Toy) -> None:
    of = job(toy)
    decayed = {id(p): group["weight_decay"] for group in of.optimizer.param_groups for p in group["params"]}
    assert {name for name, p in of.step.named_parameters() if decayed[id(p)] == 0} == {
        name for name, _ in of.step.named_parameters() if "norm" in name
    }


def poisoned(of: Job, steps: set[int]) -> Job:
    """A job whose loss and gradients are NaN in some steps."""
    current: list[int] = [-1]

    def rows(step: int) -> Share:
        current[0] = step
        return of.rows(step)

    def train(ids: Tensor, weights: Tensor, *others: Any) -> dict[str, Tensor]:
        return of.train(ids, weights * (float("nan") if current[0] in steps else 1.0), *others)

    return replace(of, rows=rows, train=train)


def test_a_non_finite_step_stops_with_its_rows_before_the_update(toy: Toy) -> None:
    of = poisoned(job(toy), {2})
    reference = job(toy)
    run(reference, 2)
    with pytest.raises(MinitronError, match=r"in step 3 \(rows 16 to 23 of the data order\)"):
        run(of, 5)
    for (name, p), (_, q) in zip(of.step.named_parameters(), reference.step.named_parameters()):
        assert torch.equal(p, q), name


def test_the_guard_leaves_bad_steps_out(toy: Toy) -> None:
    progress, seen = run(replace(poisoned(job(toy), {2}), spike_guard=5.0), 5)
    assert (progress.step, progress.skipped) == (5, 1)
    assert not np.isfinite(seen[2]["loss"])
    assert np.isfinite(seen[4]["loss"])


def test_a_guard_does_not_skip_for_ever(toy: Toy) -> None:
    with pytest.raises(MinitronError, match=r"not finite in step 12 "):
        run(replace(poisoned(job(toy), set(range(1, 20))), spike_guard=5.0), 20)


def test_what_counts_as_a_spike() -> None:
    calm = (1.0, 1.1, 0.9, 1.0, 1.2, 1.0, 0.8, 1.0)
    assert is_spike(6.0, calm, 5.0)
    assert not is_spike(4.0, calm, 5.0)
    assert not is_spike(6.0, calm, None)
    assert not is_spike(6.0, calm[:3], 5.0), "too few to judge by"
    assert is_spike(float("nan"), (), 5.0)
