"""`minitron prune`: trim a checkpoint in width and depth."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from minitron_cli.cli.common import (
    argument,
    bytes_text,
    count_text,
    emit,
    examples,
    option,
    parse_count,
    require_model,
    say,
    table,
)
from minitron_cli.cli.iterate import check_iterations, iterate
from minitron_cli.errors import MinitronError

NAME = "prune"
EXAMPLES = examples(
    "minitron prune Llama-3.1-8B --target width --hidden 3072 --ffn 9216 --scores scores.safetensors -o small",
    "minitron prune Llama-3.1-8B --target depth --drop-layers 15-30",
)


def command(
    model: Annotated[str | None, argument("MODEL", help="a model directory or a hub id")] = None,
    target: Annotated[str | None, option("--target", help="width, depth or both: what may be cut")] = None,
    hidden: Annotated[int | None, option("--hidden", help="embedding channels to keep", parser=parse_count)] = None,
    ffn: Annotated[int | None, option("--ffn", help="MLP neurons a layer keeps", parser=parse_count)] = None,
    heads: Annotated[int | None, option("--heads", help="query heads a layer keeps")] = None,
    kv_heads: Annotated[int | None, option("--kv-heads", help="key/value groups a layer keeps")] = None,
    layers: Annotated[int | None, option("--layers", help="layers to keep, by block influence")] = None,
    drop_layers: Annotated[str | None, option("--drop-layers", help="layers to drop, from 0: 15-30 or 3,7")] = None,
    experts: Annotated[int | None, option("--experts", help="experts a layer keeps")] = None,
    expert_ffn: Annotated[int | None, option("--expert-ffn", help="neurons an expert keeps")] = None,
    shared_ffn: Annotated[int | None, option("--shared-ffn", help="neurons a layer's shared expert keeps")] = None,
    experts_per_token: Annotated[int | None, option("--experts-per-token", help="experts a token is routed to")] = None,
    head_merge: Annotated[
        str | None, option("--head-merge", help="merge dropped query heads into kept ones: query or both")
    ] = None,
    compensate: Annotated[
        str, option("--compensate", help="fold what is dropped into what stays: none or least-squares")
    ] = "none",
    moments: Annotated[
        Path | None, option("--moments", help="of `importance --second-moments` [default: beside the scores]")
    ] = None,
    ridge: Annotated[str, option("--ridge", help="of least squares, relative; auto: by held-out error")] = "1e-2",
    select: Annotated[
        str, option("--select", help="neurons that stay: by scores, or by residual error once compensated")
    ] = "scores",
    rotate: Annotated[
        bool, option("--rotate", help="keep directions of the residual stream, not channels (with --compensate)")
    ] = False,
    params: Annotated[int | None, option("--params", help="parameters to end at: 4.5B", parser=parse_count)] = None,
    multiple_of: Annotated[int, option("--multiple-of", help="round widths to multiples, for speed", min=1)] = 1,
    scores: Annotated[Path | None, option("--scores", help="scores of `minitron importance`")] = None,
    data: Annotated[list[str] | None, option("--data", help="calibration data, when there are no scores yet")] = None,
    samples: Annotated[int, option("--samples", help="calibration samples, when measuring first")] = 1024,
    seq_len: Annotated[int | None, option("--seq-len", help="tokens a sample, when measuring first")] = None,
    iterations: Annotated[int, option("--iterations", help="measure anew this many times on the way", min=1)] = 1,
    output: Annotated[Path | None, option("-o", "--output", help="output directory [default: MODEL-SHAPE]")] = None,
    max_shard_size: Annotated[
        int | None, option("--max-shard-size", help="bytes a weight file may have: 5B, 500M", parser=parse_count)
    ] = None,
    check: Annotated[bool, option("--check", help="load the result and compare it with the masked source")] = False,
    force: Annotated[bool, option("--force", help="use scores although they are of another model")] = False,
    overwrite: Annotated[bool, option("--overwrite", help="replace an output that minitron made")] = False,
    dry_run: Annotated[bool, option("--dry-run", help="only say what would be done")] = False,
    as_json: Annotated[bool, option("--json", help="one JSON object on stdout")] = False,
) -> None:
    """Trim a checkpoint, streaming from safetensors to safetensors; the result loads with from_pretrained."""
    sizes = {"hidden": hidden, "ffn": ffn, "head": heads, "kv": kv_heads, "layer": layers, "expert": experts,
             "expert_ffn": expert_ffn, "shared_ffn": shared_ffn, "expert_active": experts_per_token}  # fmt: skip
    asked = Asked(target, {a: int(n) for a, n in sizes.items() if n is not None}, drop_layers, params, multiple_of)
    folding = compensate != "none"
    measure = Measure(require_model(model, NAME), scores, tuple(data or ()), samples, seq_len, folding, iterations)
    writing = Writing(head_merge, compensate, moments, ridge, select, rotate, max_shard_size, check, force, overwrite)
    _prune(asked, measure, writing, output, dry_run, as_json)


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


def _prune(asked: Asked, measure: Measure, how: Writing, output: Path | None, dry_run: bool, as_json: bool) -> None:
    from minitron_cli.checkpoint.atomic import check_output
    from minitron_cli.checkpoint.moments_file import moments_path
    from minitron_cli.checkpoint.reader import open_checkpoint
    from minitron_cli.prune import target as targets
    from minitron_cli.prune.compensate import check_request
    from minitron_cli.prune.directions import check_rotation
    from minitron_cli.prune.preflight import preflight

    check_request(how.compensate, how.ridge, how.head_merge, how.check, how.select, how.rotate)
    check_iterations(measure.iterations, scores=measure.scores, data=measure.data, fixed=_settles(asked, how))
    wanted = targets.Target(asked.sizes, targets.parse_layers(asked.drop_layers) if asked.drop_layers else ())
    source = open_checkpoint(measure.model)
    found = None
    if asked.params is not None:
        _only_params(asked)
        found = _scores(measure, output or Path(source.path.resolve().name), ["a shape of that size"])
        wanted = targets.target_for_budget(source, asked.params, found)
    targets.check_kind(asked.kind, wanted)
    shape = targets.target_shape(source, targets.rounded(source.shape, wanted, asked.multiple_of))
    output = output or Path(targets.default_name(source.path.resolve().name, source.shape, shape))
    facts = preflight(source, shape) | {"output": str(output)}
    if dry_run:
        emit(facts, as_json, lambda: _show_plan(facts))
        return
    check_output(output, how.overwrite)
    # Directions are not ranked by scores: the plan of all else keeps every channel.
    ranked = shape.with_(hidden=source.shape["hidden"]) if how.rotate else shape
    needed = targets.needed_scores(source.shape, ranked, wanted)
    if how.rotate:
        check_rotation(source.family, shape["hidden"] != source.shape["hidden"])
        needed = needed or ["the second moments"] * (how.moments is None)
    if needed and found is None and measure.iterations == 1:
        found = _scores(measure, output, needed)
    say(f"pruning {source.path} -> {output}: {facts['change']}")
    moments = how.moments or moments_path(measure.file(output))
    if measure.iterations > 1:
        plan = iterate(source, shape, measure, measure.iterations, output)
    else:
        plan = targets.make_plan(source.shape, ranked, wanted, found)
    facts["check"] = _write(source, plan, shape, output, found, how, moments, measure)
    emit(facts, as_json, lambda: _show_done(facts, source.path))


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


def _write(
    source: Any, plan: Any, shape: Any, output: Path, scores: Any, how: Writing, moments: Path, measure: Measure
) -> Any:
    from minitron_cli.checkpoint.writer import MAX_SHARD_BYTES
    from minitron_cli.prune.compensate import open_compensation, parse_ridge
    from minitron_cli.prune.directions import by_directions
    from minitron_cli.prune.run import write_pruned
    from minitron_cli.prune.select import by_residual
    from minitron_cli.spec.plan import with_head_merge

    options: dict[str, Any] = {
        "target": {axis: shape[axis] for axis in shape if shape[axis] != plan.source[axis]},
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
            plan = by_residual(source, plan, folded)
            options["select"] = how.select
        if how.rotate:
            plan = by_directions(source, plan, shape["hidden"], folded)
            options["rotate"] = True
    manifest = write_pruned(
        source, plan, output, scores=scores, options=options, overwrite=how.overwrite, force=how.force,
        max_shard_bytes=how.max_shard_size or MAX_SHARD_BYTES, check=how.check,
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


def _show_plan(facts: dict[str, Any]) -> None:
    rows = [[axis, f"{a:,}", f"{b:,}"] for axis, (a, b) in facts["shape"].items()]
    rows += [[name, show(a), show(b)] for name, show, (a, b) in (
        ("parameters", "{:,}".format, facts["parameters"]),
        ("non-embedding", "{:,}".format, facts["non_embedding_parameters"]),
        ("bytes on disk", bytes_text, facts["bytes"]),
        ("KV bytes per token", "{:,}".format, facts["kv_bytes_per_token"]),
        ("FLOPs per token", count_text, facts["flops_per_token"]),
    )]  # fmt: skip
    table(["", "source", "target"], rows)
    for warning in facts["warnings"]:
        say(f"warning: {warning}")
    cost = f"about {bytes_text(facts['peak_memory'])} of memory and {facts['seconds']:.0f} s at 500 MB/s"
    print(f"would write {facts['output']}; {cost}")


def _show_done(facts: dict[str, Any], source: Path) -> None:
    for warning in facts["warnings"]:
        say(f"warning: {warning}")
    if facts["check"] and facts["check"]["checked"]:
        say(f"checked against the masked source: relative error {facts['check']['relative_error']:.1e}")
    elif facts["check"]:
        say(f"warning: not checked: {facts['check']['why']}")
    before, after = facts["parameters"]
    print(f"{facts['output']}: {count_text(after)} parameters, {after / before:.0%} of {count_text(before)}")
    print(f"next: minitron distill {facts['output']} --teacher {source} --data DATA -o {facts['output']}-distilled")
