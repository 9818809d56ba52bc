"""What `minitron prune` does with its options: settle the shape, find or measure the scores, cut, write."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minitron_cli.cli.common import say
from minitron_cli.cli.iterate import check_iterations, iterate
from minitron_cli.errors import MinitronError


@dataclass(frozen=True, slots=True)
class Asked:
    """The shape asked for, as typed."""

    kind: str | None
    sizes: dict[str, int]
    drop_layers: str | None
    params: int | None
    multiple_of: int


@dataclass(frozen=True, slots=True)
class Measure:
    """Where the scores are, or what to measure them on first."""

    model: str
    scores: Path | None
    data: tuple[str, ...]
    samples: int
    seq_len: int | None
    second_moments: bool
    iterations: int

    def file(self, output: Path) -> Path:
        """The scores file that is read, or will be made next to the output."""
        return self.scores or output.with_name(output.name + ".scores.safetensors")


@dataclass(frozen=True, slots=True)
class Writing:
    """How the result is made."""

    head_merge: str | None
    compensate: str
    moments: Path | None
    ridge: str
    select: str
    rotate: bool
    max_shard_size: int | None
    check: bool
    force: bool
    overwrite: bool


@dataclass(frozen=True, slots=True)
class Job:
    """A request that was checked against its source: the shape it leads to, and what a dry run says of it."""

    source: Any
    target: Any
    shape: Any
    output: Path
    scores: Any
    facts: dict[str, Any]


def settle(asked: Asked, measure: Measure, how: Writing, output: Path | None) -> Job:
    """Check the request, from the config and headers alone (and, for --params, the scores)."""
    from minitron_cli.checkpoint.atomic import check_output
    from minitron_cli.checkpoint.reader import open_checkpoint
    from minitron_cli.data.source import local_paths
    from minitron_cli.prune import target as targets
    from minitron_cli.prune.compensate import check_request
    from minitron_cli.prune.directions import check_rotation
    from minitron_cli.prune.preflight import preflight

    check_request(how.compensate, how.ridge, how.head_merge, how.check, how.select, how.rotate)
    check_iterations(measure.iterations, scores=measure.scores, data=measure.data, fixed=_settles(asked, how))
    wanted = targets.Target(asked.sizes, targets.parse_layers(asked.drop_layers) if asked.drop_layers else ())
    source = open_checkpoint(measure.model)
    inputs = [source.path, *local_paths(measure.data), *filter(None, (measure.scores, how.moments))]
    found = None
    if asked.params is not None:
        _only_params(asked)
        if output is not None:
            check_output(output, how.overwrite, inputs)  # before measuring, which can take hours
        found = _scores(measure, output or Path(source.path.resolve().name), ["a shape of that size"])
        wanted = targets.target_for_budget(source, asked.params, found)
    targets.check_kind(asked.kind, wanted)
    shape = targets.target_shape(source, targets.rounded(source.shape, wanted, asked.multiple_of))
    if how.rotate:
        check_rotation(source.family, shape["hidden"] != source.shape["hidden"])
    output = output or Path(targets.default_name(source.path.resolve().name, source.shape, shape))
    check_output(output, how.overwrite, inputs)
    fold = {"rotate": how.rotate, "residual": how.select == "residual"} if how.compensate != "none" else None
    facts = preflight(source, shape, fold) | {"output": str(output)}
    return Job(source, wanted, shape, output, found, facts)


def carry_out(job: Job, measure: Measure, how: Writing) -> dict[str, Any]:
    """Measure what is not known, cut and write; returns the facts of the job with what the check found."""
    from minitron_cli.checkpoint.moments_file import moments_path
    from minitron_cli.prune import target as targets

    source, found = job.source, job.scores
    # Directions are not ranked by scores: the plan of all else keeps every channel.
    ranked = job.shape.with_(hidden=source.shape["hidden"]) if how.rotate else job.shape
    needed = targets.needed_scores(source.shape, ranked, job.target)
    if how.rotate and not needed and how.moments is None:
        needed = ["hidden"]  # not for the scores, but for the second moments beside them
    if needed and found is None and measure.iterations == 1:
        found = _scores(measure, job.output, needed)
    say(f"pruning {source.path} -> {job.output}: {job.facts['change']}")
    if measure.iterations > 1:
        plan = iterate(source, job.shape, measure, measure.iterations, job.output)
    else:
        plan = targets.make_plan(source.shape, ranked, job.target, found)
    moments = how.moments or moments_path(measure.file(job.output))
    return job.facts | {"check": _write(job, plan, found, how, moments, measure)}


def _only_params(asked: Asked) -> None:
    if asked.sizes or asked.drop_layers or asked.kind:
        raise MinitronError(
            "--params chooses the whole shape; it does not go with sizes of your own",
            "give either --params or the sizes; `minitron search` finds shapes with some sizes fixed",
        )


def _settles(asked: Asked, how: Writing) -> list[str]:
    """Options that choose units by themselves, or need the scores they were chosen by."""
    given = {"--drop-layers": asked.drop_layers, "--params": asked.params, "--head-merge": how.head_merge}
    return [flag for flag, value in given.items() if value] + ["--compensate"] * (how.compensate != "none")


def _write(job: Job, plan: Any, scores: Any, how: Writing, moments: Path, measure: Measure) -> Any:
    from minitron_cli.checkpoint.writer import MAX_SHARD_BYTES
    from minitron_cli.prune.compensate import open_compensation, parse_ridge
    from minitron_cli.prune.directions import by_directions
    from minitron_cli.prune.run import write_pruned
    from minitron_cli.prune.select import by_residual
    from minitron_cli.spec.plan import with_head_merge

    options: dict[str, Any] = {
        "target": {axis: job.shape[axis] for axis in job.shape if job.shape[axis] != plan.source[axis]},
        "force": how.force,
    }
    if measure.iterations > 1:
        options |= {"iterations": measure.iterations, "data": list(measure.data), "samples": measure.samples}
    if how.head_merge is not None:
        plan = with_head_merge(plan, scores, how.head_merge)
        options["head_merge"] = how.head_merge
    folded = None
    if how.compensate != "none":
        folded = open_compensation(moments, parse_ridge(how.ridge))
        options |= {"compensate": how.compensate, "ridge": how.ridge}
        if how.select == "residual":
            plan = by_residual(job.source, plan, folded)
            options["select"] = how.select
        if how.rotate:
            plan = by_directions(job.source, plan, job.shape["hidden"], folded)
            options["rotate"] = True
    manifest = write_pruned(
        job.source, plan, job.output, scores=scores, options=options, overwrite=how.overwrite, force=how.force,
        max_shard_bytes=MAX_SHARD_BYTES if how.max_shard_size is None else how.max_shard_size, check=how.check,
        compensation=folded,
    )  # fmt: skip
    return manifest["check"]


def _scores(measure: Measure, output: Path, needed: list[str]) -> Any:
    """Read the scores, or measure them first and keep them next to the output."""
    from minitron_cli.checkpoint.scores_file import read_scores

    scores = measure.scores
    if scores is None:
        if not measure.data:
            raise MinitronError(
                f"no scores for {', '.join(needed)}: pruning needs to know what matters",
                "add --scores FILE (from `minitron importance`), or --data DATA to measure first",
            )
        from minitron_cli.cli.importance import measure as run

        scores = measure.file(output)
        say(f"measuring importance first; the scores are kept in {scores}")
        run(measure.model, list(measure.data), scores, samples=measure.samples, seq_len=measure.seq_len,
            second_moments=measure.second_moments)  # fmt: skip
    return read_scores(scores)[0]
