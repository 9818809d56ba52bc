"""Evaluation while training: the same windows every time, through the same fused loss, forward only."""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from minitron_cli.data.tokens import TokenFile
from minitron_cli.training.distributed import World, total
from minitron_cli.training.loop import Job
from minitron_cli.training.optimizer import Call
from minitron_cli.training.rows import full_mask

_TERMS = ("ce", "kd", "agreement")


def evaluator(
    job: Job, measure: Call, files: Sequence[TokenFile], names: Sequence[str], seq_len: int, windows: int
) -> Callable[[], dict[str, float]]:
    """A function that evaluates the student now, on the first `windows` windows of every file.

    It returns means over predicted tokens: `eval_ce` in nats, with a teacher `eval_kd` (the divergence that is trained)
    and `eval_agreement` (share of equal top-1); where there are several files `eval_ce/NAME` and so on for each.
    """
    rows = [f.windows(np.arange(min(windows, f.num_windows(seq_len))), seq_len) for f in files]

    def run() -> dict[str, float]:
        job.step.eval()
        try:
            each = [_mean(measure, part, job.micro_batch, job.world) for part in rows]
        finally:
            job.step.train()
        counts = [len(part) for part in rows]
        found = {f"eval_{term}": float(np.average([m[term] for m in each], weights=counts)) for term in each[0]}
        if len(rows) > 1:
            found |= {f"eval_{term}/{name}": value for name, m in zip(names, each) for term, value in m.items()}
        return found

    return run


def _mean(measure: Call, rows: np.ndarray, micro_batch: int, world: World) -> dict[str, float]:
    """Token means over rows (row, token), split over the ranks; each makes as many calls, the last on idle rows."""
    weights = full_mask(rows)
    weights /= weights.sum()
    # Rows that fill the last round weigh nothing: ranks must enter a sharded forward equally often.
    padding = -len(rows) % (micro_batch * world.size)
    rows = np.pad(rows, ((0, padding), (0, 0)))
    weights = np.pad(weights, ((0, padding), (0, 0)))
    sums: dict[str, torch.Tensor] = {}
    for start in range(world.rank * micro_batch, len(rows), micro_batch * world.size):
        part = slice(start, start + micro_batch)
        terms = measure(torch.from_numpy(rows[part]).to(world.device), torch.from_numpy(weights[part]).to(world.device))
        for name in _TERMS:
            if name in terms:
                sums[name] = sums[name] + terms[name] if name in sums else terms[name].float()
    values = total(world, torch.stack(list(sums.values()))).tolist()
    return dict(zip(sums, values))
