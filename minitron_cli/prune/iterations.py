"""Iterative pruning: on the way from source to target the model is measured anew T times (Minitron, section 2.2).

The paper found no benefit over measuring once (table 14: T = 1, 2 and 4 end at the same loss); this is here so that
anybody can check that for their own model.
"""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from minitron_cli.checkpoint.reader import Checkpoint, open_checkpoint
from minitron_cli.checkpoint.scores_file import read_scores
from minitron_cli.errors import MinitronError
from minitron_cli.prune.request import Measurement, PruneRequest
from minitron_cli.prune.run import write_pruned
from minitron_cli.spec.axes import AXES
from minitron_cli.spec.compose import compose
from minitron_cli.spec.plan import Plan, from_scores, keep_all
from minitron_cli.spec.shape import Shape

# These go with the first step, so that every shape on the way is valid: heads are ranked inside the groups that stay,
# and many model classes want the hidden size to be a multiple of the heads.
_AT_ONCE = {axis.name for axis in AXES if axis.group or not axis.scored}


def iterate(
    source: Checkpoint,
    shape: Shape,
    request: PruneRequest,
    output: Path,
    measure: Callable[[Measurement], object],
    say: Callable[[str], None],
) -> Plan:
    """The plan from `source` to `shape` by T measurements; models on the way live in a temporary directory.

    Each is cut from the source by the composed plan, so the result's kept indices point into the source.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    current, plan = source, keep_all(source.shape)
    with TemporaryDirectory(prefix=f".{output.name}.iterations-", dir=output.parent) as folder:
        for number, point in enumerate(waypoints(source.shape, shape, request.iterations), 1):
            say(f"iteration {number}/{request.iterations}: measuring {current.path}")
            scores = Path(folder) / f"{number}.scores.safetensors"
            measure(Measurement(str(current.path), request.data, scores, request.samples, request.seq_len, False))
            plan = compose(plan, from_scores(read_scores(scores)[0], current.shape, point))
            if number < request.iterations:
                write_pruned(source, plan, Path(folder) / str(number))
                current = open_checkpoint(Path(folder) / str(number))
    return plan


def waypoints(source: Shape, target: Shape, iterations: int) -> list[Shape]:
    """The shapes after each of T equal steps, the last one being `target`.

    Layers, neurons and experts fall linearly, hidden in multiples of the heads; heads and KV groups go at once.
    """
    if iterations < 1:
        raise MinitronError(f"--iterations must be at least 1, got {iterations}", "1 measures once, as the paper does")
    return [_between(source, target, step, iterations) for step in range(1, iterations)] + [target]


def _between(source: Shape, target: Shape, step: int, steps: int) -> Shape:
    sizes = {}
    for axis in source:
        if axis in _AT_ONCE:
            sizes[axis] = target[axis]
            continue
        exact = source[axis] - (source[axis] - target[axis]) * step / steps
        multiple = target["head"] if axis == "hidden" and "head" in target else 1
        sizes[axis] = min(source[axis], max(target[axis], round(exact / multiple) * multiple))
    return source.with_(**sizes)
