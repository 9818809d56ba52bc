"""`minitron prune`: trim a checkpoint in width and depth."""

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
from minitron_cli.cli.prune_steps import Asked, Measure, Writing, carry_out, settle

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
    from minitron_cli.spec.axes import AXIS_OF_FLAG

    sizes = {"hidden": hidden, "ffn": ffn, "heads": heads, "kv-heads": kv_heads, "layers": layers, "experts": experts,
             "expert-ffn": expert_ffn, "shared-ffn": shared_ffn, "experts-per-token": experts_per_token}  # fmt: skip
    sizes_of_axes = {AXIS_OF_FLAG[flag]: int(size) for flag, size in sizes.items() if size is not None}
    asked = Asked(target, sizes_of_axes, drop_layers, params, multiple_of)
    folding = compensate != "none"
    measure = Measure(require_model(model, NAME), scores, tuple(data or ()), samples, seq_len, folding, iterations)
    writing = Writing(head_merge, compensate, moments, ridge, select, rotate, max_shard_size, check, force, overwrite)
    job = settle(asked, measure, writing, output)
    if dry_run:
        emit(job.facts, as_json, lambda: _show_plan(job.facts))
        return
    facts = carry_out(job, measure, writing)
    emit(facts, as_json, lambda: _show_done(facts, job.source.path))


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
    speed = "1 GB/s" + " and 100 GFLOP/s" * bool(facts["fold_flops"])
    cost = f"about {bytes_text(facts['peak_memory'])} of memory and {facts['seconds']:.0f} s at {speed}"
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
