"""`minitron prune`: trim a checkpoint in width and depth."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from minitron_cli.cli.common import (
    argument,
    bytes_text,
    command_line,
    count_text,
    emit,
    examples,
    option,
    parse_count,
    require_model,
    say,
    table,
)
from minitron_cli.cli.progress import byte_progress

if TYPE_CHECKING:
    from minitron_cli.prune.execute import PruneResult
    from minitron_cli.prune.request import Measurement
    from minitron_cli.prune.resolve import ResolvedPrune

NAME = "prune"
EXAMPLES = examples(
    "minitron prune Llama-3.1-8B --target width --hidden 3072 --ffn 9216 --scores scores.safetensors -o small",
    "minitron prune Llama-3.1-8B --target depth --drop-layers 15-30",
    "minitron prune Llama-3.2-1B --vocab 32768 --data corpus/ -o small --dry-run",
)
PANELS = {
    "Experts": (
        "experts",
        "expert_ffn",
        "shared_ffn",
        "experts_per_token",
        "expert_merge",
    ),
    "Vocabulary": (
        "vocab",
        "vocab_coverage",
        "keep_tokens",
    ),
    "Linear attention and Mamba": (
        "value_heads",
        "key_heads",
        "mamba_heads",
        "mamba_head_dim",
    ),
    "Compensation": (
        "compensate",
        "moments",
        "ridge",
        "select",
        "rotate",
    ),
    "Quantised sources": (
        "dequantize",
        "dtype",
    ),
    "Measuring first": (
        "samples",
        "seq_len",
    ),
    "Output": (
        "text_only",
        "multiple_of",
        "max_shard_size",
        "check",
        "force",
        "overwrite",
        "as_json",
    ),
}


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
    expert_merge: Annotated[
        str, option("--expert-merge", help="average experts that go into those that stay: none, m-smoe or nearest")
    ] = "none",
    vocab: Annotated[
        int | None, option("--vocab", help="tokens to keep, the most used ones of --data", parser=parse_count)
    ] = None,
    vocab_coverage: Annotated[
        str | None, option("--vocab-coverage", help="keep the tokens that are this share of --data: 99.9%")
    ] = None,
    keep_tokens: Annotated[
        Path | None, option("--keep-tokens", help="a file of tokens, or text, to keep in any case: one a line")
    ] = None,
    value_heads: Annotated[int | None, option("--value-heads", help="value heads linear attention keeps")] = None,
    key_heads: Annotated[int | None, option("--key-heads", help="key heads linear attention keeps")] = None,
    mamba_heads: Annotated[int | None, option("--mamba-heads", help="heads a Mamba layer keeps")] = None,
    mamba_head_dim: Annotated[int | None, option("--mamba-head-dim", help="channels a Mamba head keeps")] = None,
    compensate: Annotated[
        str, option("--compensate", help="refit what stays to the source's activations: none or least-squares")
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
    text_only: Annotated[
        bool, option("--text-only", help="of a model of text and images, write the text model alone")
    ] = False,
    dequantize: Annotated[
        bool, option("--dequantize", help="take FP8 or MXFP4 weights, and write plain ones; sizes may be left out")
    ] = False,
    dtype: Annotated[
        str | None, option("--dtype", help="of dequantised weights: bfloat16, float16, float32 [default: bfloat16]")
    ] = None,
    params: Annotated[int | None, option("--params", help="parameters to end at: 4.5B", parser=parse_count)] = None,
    multiple_of: Annotated[int, option("--multiple-of", help="round widths to multiples, for speed", min=1)] = 1,
    scores: Annotated[Path | None, option("--scores", help="scores of `minitron importance`")] = None,
    data: Annotated[list[str] | None, option("--data", help="text to count tokens on, or to measure scores on")] = None,
    samples: Annotated[int, option("--samples", help="calibration samples, when measuring first")] = 1024,
    seq_len: Annotated[int | None, option("--seq-len", help="tokens a sample, when measuring first")] = None,
    output: Annotated[Path | None, option("-o", "--output", help="output directory [default: MODEL-SHAPE]")] = None,
    max_shard_size: Annotated[
        int, option("--max-shard-size", help="bytes a weight file may have: 5B, 500M", parser=parse_count)
    ] = 5_000_000_000,
    check: Annotated[
        bool, option("--check", help="load the result and compare it with plain trimming, by --data if compensated")
    ] = False,
    force: Annotated[bool, option("--force", help="use scores although they are of another model")] = False,
    overwrite: Annotated[bool, option("--overwrite", help="replace an output that minitron made")] = False,
    dry_run: Annotated[bool, option("--dry-run", help="only say what would be done")] = False,
    as_json: Annotated[bool, option("--json", help="one JSON object on stdout")] = False,
) -> None:
    """Trim a checkpoint, streaming from safetensors to safetensors; the result loads with from_pretrained."""
    from minitron_cli.prune import execute
    from minitron_cli.prune.request import PruneRequest

    request = PruneRequest(
        model=require_model(model, NAME), target=target, hidden=hidden, ffn=ffn, heads=heads, kv_heads=kv_heads,
        layers=layers, drop_layers=drop_layers, experts=experts, expert_ffn=expert_ffn, shared_ffn=shared_ffn,
        experts_per_token=experts_per_token, expert_merge=expert_merge, vocab=vocab, vocab_coverage=vocab_coverage,
        keep_tokens=keep_tokens, value_heads=value_heads, key_heads=key_heads, mamba_heads=mamba_heads,
        mamba_head_dim=mamba_head_dim, params=params, multiple_of=multiple_of, scores=scores,
        data=tuple(data or ()), samples=samples, seq_len=seq_len, compensate=compensate,
        moments=moments, ridge=ridge, select=select, rotate=rotate, text_only=text_only, dequantize=dequantize,
        dtype=dtype, output=output, max_shard_size=max_shard_size, check=check, force=force, overwrite=overwrite,
    )  # fmt: skip
    if dry_run:
        resolved = execute.dry_run(request, lambda: byte_progress("counting tokens"))
        emit(asdict(resolved.facts), as_json, lambda: _show_plan(resolved))
        return
    result = execute.prune(request, _measure, say, lambda: byte_progress("counting tokens"))
    emit(result.to_json(), as_json, lambda: _show_done(result, request.model))


def _measure(wanted: "Measurement") -> None:
    """Importance with its defaults. The verbs meet only here."""
    from minitron_cli.cli.importance import measure

    measure(wanted.model, list(wanted.data), wanted.output, samples=wanted.samples, seq_len=wanted.seq_len,
            second_moments=wanted.second_moments, dequantize=wanted.dequantize)  # fmt: skip


def _show_plan(resolved: "ResolvedPrune") -> None:
    facts = resolved.facts
    rows = [[axis, f"{a:,}", f"{b:,}"] for axis, (a, b) in facts.shape.items()]
    rows += [[name, show(a), show(b)] for name, show, (a, b) in (
        ("parameters", "{:,}".format, facts.parameters),
        ("non-embedding", "{:,}".format, facts.non_embedding_parameters),
        ("bytes on disk", bytes_text, facts.bytes),
        ("KV bytes per token", "{:,}".format, facts.kv_bytes_per_token),
        ("FLOPs per token", count_text, facts.flops_per_token),
    )]  # fmt: skip
    table(["", "source", "target"], rows)
    if facts.respelling:
        _show_respelling(facts.respelling)
    for warning in (*facts.warnings, *([resolved.missing] if resolved.missing else [])):
        say(f"warning: {warning}")
    speed = "1 GB/s" + " and 100 GFLOP/s" * bool(facts.compensation_flops)
    cost = f"about {bytes_text(facts.peak_memory)} of memory and {facts.seconds:.0f} s at {speed}"
    print(f"would write {facts.output}; {cost}")


def _show_respelling(domains: Mapping[str, Mapping[str, float]]) -> None:
    """What the cut does to the counted text: all else keeps its tokens."""
    shares = ("tokens_changed", "bytes_changed", "lengthening")
    rows = [[name, count_text(int(one["tokens"])), *(f"{one[s]:.2%}" for s in shares)] for name, one in domains.items()]
    table(["counted text", "tokens", "tokens that go", "bytes they spell", "longer by about"], rows)


def _checked(check: Mapping[str, Any]) -> str:
    """What --check found, as a sentence."""
    if not check["checked"]:
        return f"warning: not checked: {check['why']}"
    if "relative_error" in check:
        return f"checked against the masked source: relative error {check['relative_error']:.1e}"
    if not check["losses"]:
        return "checked that the result loads and runs; with --data its loss is compared with that of plain trimming"
    losses = ", ".join(f"{name} {loss:.4f}" for name, loss in check["losses"].items())
    return f"nats per token on {check['tokens']:,} tokens of --data: {losses}"


def _show_done(result: "PruneResult", source: str) -> None:
    from minitron_cli.prune.reconstruction import lines, warnings

    facts = result.facts
    for warning in (*facts.warnings, *warnings(result.reconstruction)):
        say(f"warning: {warning}")
    for text in lines(result.reconstruction):
        say(text)
    if result.manifest["check"]:
        say(_checked(result.manifest["check"]))
    before, after = facts.parameters
    print(f"{facts.output}: {count_text(after)} parameters, {after / before:.0%} of {count_text(before)}")
    if facts.respelling:  # its teacher would have to have the same vocabulary
        line = command_line("train", facts.output, "--data", "DATA", "-o", f"{facts.output}-trained")
    else:
        line = command_line(
            "distill", facts.output, "--teacher", source, "--data", "DATA", "-o", f"{facts.output}-distilled"
        )
    print(f"next: {line}")
