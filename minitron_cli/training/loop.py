"""The training loop. What is sharded, cast, logged or saved is decided elsewhere; the order of events, here."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from minitron_cli.errors import MinitronError
from minitron_cli.hf.process_group import World
from minitron_cli.training.distributed import sync_gradients
from minitron_cli.training.interrupt import StopFlag
from minitron_cli.training.optimizer import Call, clip, is_spike, remember, set_rate
from minitron_cli.training.rows import Micro, Rows, Share, micro_batches
from minitron_cli.training.schedule import Schedule, learning_rate
from minitron_cli.training.state import Progress, seed_step
from minitron_cli.training.step import KDStep
from minitron_cli.training.stretches import Stretch, stretch_at


@dataclass(frozen=True, slots=True)
class Job:
    """All that the loop needs: `train` runs `step` forward and backward.

    While the micro-batches of a step add up, every rank holds its gradient "whole", or they are "sharded": reduced
    after each.
    """

    step: KDStep
    train: Call
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    rows: Rows
    stretches: tuple[Stretch, ...]
    grad_clip: float
    spike_guard: float | None
    seed: int
    world: World
    gradients: str = "whole"

    def at(self, step: int) -> Stretch:
        """The stretch of the run that a step lies in."""
        return stretch_at(self.stretches, step)

    def backward(self, micro: Micro) -> dict[str, Tensor]:
        """Run a micro-batch forward and backward; its terms, still on the device."""
        sync_gradients(self.step, micro.is_last or self.gradients == "sharded")
        return self.train(*micro.inputs)


# Steps in a row that the spike guard may leave out; then a large norm is the new normal, and a non-finite one stops.
_PATIENCE = 10


class StepRefused(MinitronError):
    """A step was refused before it touched the weights: they are those of the last good one, and worth keeping."""


class NotFinite(StepRefused):
    """A loss or gradient norm of `step` (from 0) is not finite: its global `values`, and this rank's rows."""

    def __init__(self, message: str, hint: str, step: int, share: Share, values: Mapping[str, float]) -> None:
        super().__init__(message, hint)
        self.step = step
        self.share = share
        self.values = dict(values)


# Called after each update with the new progress and what was measured in it: logs, evaluates and saves when due.
AfterStep = Callable[[Progress, Mapping[str, float]], None]


def run(job: Job, progress: Progress, stop: StopFlag, after_step: AfterStep) -> Progress:
    """Train from `progress` to the schedule's end, or to the step at which any rank was told to stop."""
    while progress.step < job.schedule.steps:
        started = time.perf_counter()
        share = job.rows(progress.step)
        tokens, stopped = job.world.agree(share.num_targets(), bool(stop.signal))
        if stopped:
            break
        seed_step(job.seed, progress.step, job.world.rank)
        terms = accumulate(job, share, tokens, job.at(progress.step).micro_batch)
        values = _read(terms, clip(job.optimizer, job.grad_clip), job.world)
        skip = _skips(values["grad_norm"], progress, job.spike_guard)
        lr = learning_rate(job.schedule, progress.step)
        if not skip:
            _check_finite(values, progress.step, share, job)
            set_rate(job.optimizer, lr)
            job.optimizer.step()
            job.step.after_update(values)
        job.optimizer.zero_grad()
        progress = _advance(progress, job, values, skip, time.perf_counter() - started)
        after_step(progress, {**values, "lr": lr})
    return progress


def accumulate(job: Job, share: Share, tokens: int, micro_batch: int) -> dict[str, Tensor]:
    """Add up the gradients of this rank's micro-batches; the loss terms summed over them, still on the device."""
    sums: dict[str, Tensor] = {}
    for micro in micro_batches(share, micro_batch, tokens, job.world.device):
        for name, value in job.backward(micro).items():
            sums[name] = sums[name] + value if name in sums else value
    return sums


def _read(terms: Mapping[str, Tensor], norm: Tensor, world: World) -> dict[str, float]:
    """The global loss terms and gradient norm as numbers: one all-reduce and one wait for the device in a step."""
    packed = world.sum(torch.stack([value.float() for value in terms.values()]))
    *values, grad_norm = torch.cat([packed, norm.float().reshape(1)]).tolist()
    return {**dict(zip(terms, values)), "grad_norm": grad_norm}


def _skips(norm: float, progress: Progress, factor: float | None) -> bool:
    return is_spike(norm, progress.norms, factor) and progress.skipped_in_a_row < _PATIENCE


def _check_finite(values: Mapping[str, float], step: int, share: Share, job: Job) -> None:
    """Stop before a bad gradient reaches the weights; they are still those of the last good step."""
    bad = [name for name, value in values.items() if not math.isfinite(value)]
    if bad:
        first = sum((min(step, s.until or step) - s.first) * s.batch for s in job.stretches if s.first < step)
        rows = f"rows {first} to {first + job.at(step).batch - 1} of the data order"
        raise NotFinite(
            f"{', '.join(bad)} not finite in step {step + 1} ({rows}); the weights of step {step} are unharmed",
            "type the line again with --spike-guard 10 to leave such steps out, or start again with a lower --lr",
            step,
            share,
            values,
        )


def _advance(progress: Progress, job: Job, values: Mapping[str, float], skip: bool, seconds: float) -> Progress:
    stretch = job.at(progress.step)
    losses = {name: value for name, value in values.items() if name != "grad_norm"}
    norms = progress.norms if skip else remember(progress.norms, values["grad_norm"], job.spike_guard)
    return replace(
        progress,
        step=progress.step + 1,
        tokens=progress.tokens + stretch.tokens_per_step,
        flops=progress.flops + stretch.tokens_per_step * stretch.flops_per_token,
        seconds=progress.seconds + seconds,
        first=progress.first or losses,
        last=losses,
        norms=norms,
        skipped=progress.skipped + skip,
        skipped_in_a_row=progress.skipped_in_a_row + 1 if skip else 0,
    )
