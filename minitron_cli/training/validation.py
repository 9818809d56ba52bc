"""Evaluation while training: the same windows every time, through the same fused loss, forward only."""

from collections.abc import Callable, Sequence
from itertools import islice

import numpy as np
import torch

from minitron_cli.data.tokens import TokenFile
from minitron_cli.hf.process_group import World
from minitron_cli.training.loop import Job
from minitron_cli.training.optimizer import Call
from minitron_cli.training.options import Options
from minitron_cli.training.rows import Share, micro_batches, pad_rows, share_of

_TERMS = ("ce", "kd", "agreement", "unmatched_share", "router_drift")


def evaluator(job: Job, measure: Call, shares: Sequence[Share], names: Sequence[str]) -> Callable[[], dict[str, float]]:
    """A function that evaluates the student now, on the rows of every held-out set.

    It returns means over predicted tokens: `eval_ce` in nats, with a teacher `eval_kd` (the divergence that is trained)
    and `eval_agreement` (share of equal top-1); where there are several sets `eval_ce/NAME` and so on for each. A token
    that the teacher reads otherwise counts as 0 in both; `eval_unmatched_share` says how many do. Of mixtures whose
    experts correspond to the teacher's `eval_router_drift` (see routers.py).
    """

    def run() -> dict[str, float]:
        job.step.eval()
        try:
            each = [token_means(measure, share, job.stretches[-1].micro_batch, job.world) for share in shares]
        finally:
            job.step.train()
        counts = [share.num_targets() for share in shares]
        found = {f"eval_{term}": float(np.average([m[term] for m in each], weights=counts)) for term in each[0]}
        if len(shares) > 1:
            found |= {f"eval_{term}/{name}": value for name, m in zip(names, each) for term, value in m.items()}
        return found

    return run


def held_out_names(files: Sequence[TokenFile]) -> list[str]:
    """What held-out sets are called in metrics: after the one source of each, else its directory; no name twice."""
    names: list[str] = []
    for file in files:
        name = file.path.name if len(file.header.sources) != 1 else file.header.sources[0]["name"]
        names.append(name if name not in names else f"{name}-{len(names) + 1}")
    return names


def num_windows(file: TokenFile, options: Options) -> int:
    """How many windows of a held-out set are read."""
    assert options.seq_len is not None
    return min(options.eval_windows, file.num_windows(options.seq_len))


def first_windows(file: TokenFile, options: Options) -> Share:
    """The rows of a held-out set that are read."""
    assert options.seq_len is not None
    windows = np.arange(num_windows(file, options))
    documents = None if options.cross_doc else file.document_numbers(windows, options.seq_len)
    return share_of(file.windows(windows, options.seq_len), documents)


def token_means(measure: Call, share: Share, micro_batch: int, world: World) -> dict[str, float]:
    """Token means over the rows, split over the ranks; each makes as many calls, the last on idle rows."""
    # Rows that fill the last round weigh nothing: ranks must enter a sharded forward equally often.
    padded = pad_rows(share, -len(share.ids) % (micro_batch * world.size))
    rounds = micro_batches(padded, micro_batch, share.num_targets(), world.device)
    sums: dict[str, torch.Tensor] = {}
    for micro in islice(rounds, world.rank, None, world.size):
        terms = measure(*micro.inputs)
        for name in _TERMS:
            if name in terms:
                sums[name] = sums[name] + terms[name] if name in sums else terms[name].float()
    values = world.sum(torch.stack(list(sums.values()))).tolist()
    return dict(zip(sums, values))
