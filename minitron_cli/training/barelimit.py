"""The bare limit of a step: what no step can do without, measured with the run's own modules and kernels.

Teacher backbones forward, student backbone forward and backward, and the head's GEMMs (teacher and student logits, dH,
dW), on one micro-batch; no loss, no optimizer, nothing between the GEMMs. Reported as t_bare / t_step: 1 is the limit.
"""

import time

import torch
from torch import Tensor, nn

from minitron_cli.training.fused import chunk_size
from minitron_cli.training.head import head_of
from minitron_cli.training.loop import Job
from minitron_cli.training.optimizer import caller
from minitron_cli.training.step import KDStep
from minitron_cli.training.student import backbone_of


class _Bare(nn.Module):
    """Called as a step is, so that it meets the same cast weights."""

    def __init__(self, step: KDStep) -> None:
        super().__init__()
        self.step = step

    def forward(self, ids: Tensor, weights: Tensor) -> dict[str, Tensor]:
        student = self.step.student
        taught: list[tuple[nn.Module, Tensor]] = []
        for teacher in self.step.teachers:
            where = head_of(teacher).weight.device
            with torch.no_grad():
                taught.append(
                    (teacher, backbone_of(teacher)(input_ids=ids.to(where), use_cache=False)[0].flatten(0, 1))
                )
        states = backbone_of(student)(input_ids=ids, use_cache=False)[0]
        states.backward(_head_gemms(student, states.detach().flatten(0, 1), taught).view_as(states))
        return {}


@torch.no_grad()
def _head_gemms(student: nn.Module, states: Tensor, taught: list[tuple[nn.Module, Tensor]]) -> Tensor:
    """Every model's logits, then the student's dH and dW: states (N, H) -> dH (N, H), in the loss's chunks."""
    weight = head_of(student).weight
    size = chunk_size(len(states), len(weight), states.device.type, None)
    total, back = torch.zeros_like(weight), torch.empty_like(states)
    for start in range(0, len(states), size):
        rows = slice(start, start + size)
        for teacher, hidden in taught:
            torch.mm(hidden[rows], head_of(teacher).weight.t())
        z = torch.mm(states[rows], weight.t())
        torch.mm(z, weight, out=back[rows])
        total.addmm_(z.t(), states[rows])
    return back


def bare_seconds(job: Job, cast_to: torch.dtype | None, rounds: int = 3) -> float:
    """Seconds of the bare limit of one whole step in one process; gradients are cleared behind it."""
    assert job.world.size == 1, "a sharded step can only be run whole"
    share = job.rows(0)
    device = job.world.device
    ids, weights = (part[: job.micro_batch].to(device) for part in (share.ids, share.mask))
    call = caller(_Bare(job.step), cast_to)
    times = []
    for _ in range(rounds + 1):
        _wait(device)
        started = time.perf_counter()
        call(ids, weights)
        _wait(device)
        times.append(time.perf_counter() - started)
    job.optimizer.zero_grad()
    # The first round warms up; of the others the fastest is what the machine can do.
    return min(times[1:]) * (len(share.ids) / job.micro_batch)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
