"""`minitron prune --iterations T`: measure, cut a part of the way, measure what is left, and so on."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from minitron_cli.cli.common import say
from minitron_cli.errors import MinitronError


def check_iterations(iterations: int, *, scores: Path | None, data: tuple[str, ...], fixed: list[str]) -> None:
    """Refuse what measuring on the way can not go with; `fixed` names options that settle the plan by themselves."""
    if iterations == 1:
        return
    if scores is not None or not data:
        raise MinitronError(
            "--iterations measures on the way, so it takes no --scores and needs --data", "give --data DATA instead"
        )
    if fixed:
        raise MinitronError(f"--iterations does not go with {', '.join(fixed)}", "leave one of them out")


def iterate(source: Any, shape: Any, measure: Any, iterations: int, output: Path) -> Any:
    """The plan from `source` to `shape` by T measurements; models on the way live in a temporary directory.

    Each is cut from the source by the composed plan, so the result's kept indices point into the source.
    """
    from minitron_cli.checkpoint.reader import open_checkpoint
    from minitron_cli.checkpoint.scores_file import read_scores
    from minitron_cli.cli.importance import measure as run
    from minitron_cli.prune.iterations import waypoints
    from minitron_cli.prune.run import write_pruned
    from minitron_cli.spec.compose import compose
    from minitron_cli.spec.plan import from_scores, keep_all

    output.parent.mkdir(parents=True, exist_ok=True)
    current, plan = source, keep_all(source.shape)
    with TemporaryDirectory(prefix=f".{output.name}.iterations-", dir=output.parent) as folder:
        for number, point in enumerate(waypoints(source.shape, shape, iterations), 1):
            say(f"iteration {number}/{iterations}: measuring {current.path}")
            scores = Path(folder) / f"{number}.scores.safetensors"
            run(str(current.path), list(measure.data), scores, samples=measure.samples, seq_len=measure.seq_len)
            plan = compose(plan, from_scores(read_scores(scores)[0], current.shape, point))
            if number < iterations:
                write_pruned(source, plan, Path(folder) / str(number))
                current = open_checkpoint(Path(folder) / str(number))
    return plan
