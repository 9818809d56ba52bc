"""`minitron prune`: trim a checkpoint in width and depth."""

import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minitron_cli.cli.common import bytes_text, command_line, count_text, emit, examples, require_model, say, table
from minitron_cli.cli.parameters import (
    AS_JSON,
    DRY_RUN,
    OVERWRITE,
    command_of,
    counted,
    defaults_of,
    flag,
    joined,
    model,
    names,
    typed,
)
from minitron_cli.cli.progress import byte_progress

if TYPE_CHECKING:
    from minitron_cli.prune.execute import PruneResult
    from minitron_cli.prune.preflight import PruneFacts
    from minitron_cli.prune.request import Measurement
    from minitron_cli.prune.resolve import ResolvedPrune

NAME = "prune"
EXAMPLES = examples(
    "minitron prune Llama-3.1-8B --target width --hidden 3072 --ffn 9216 --scores scores.safetensors -o small",
    "minitron prune Llama-3.1-8B --target depth --drop-layers 15-30",
    "minitron prune Llama-3.2-1B --vocab 32768 --data corpus/ -o small --dry-run",
)
_FIRST = (
    model(),
    flag("target", str, "width, depth or both: what may be cut"),
    counted("hidden", "embedding channels to keep"),
    counted("ffn", "MLP neurons a layer keeps"),
    flag("heads", int, "query heads a layer keeps"),
    flag("kv_heads", int, "key/value groups a layer keeps"),
    flag("layers", int, "layers to keep, by block influence"),
    flag("drop_layers", str, "layers to drop, from 0: 15-30 or 3,7"),
    counted("params", "parameters to end at: 4.5B"),
    flag("scores", Path, "scores of `minitron importance`"),
    flag("data", list[str], "text to count tokens on, to measure scores on, or to refit experts to"),
    flag("output", Path, "output directory [default: MODEL-SHAPE]", "-o", "--output"),
    DRY_RUN,
)
_MORE = {
    "Sizes": (
        flag("keep_pattern", bool, "keep layers in the source's order of kinds, in whole periods"),
        flag("multiple_of", int, "round widths to multiples, for speed", min=1),
    ),
    "Experts": (
        flag("experts", int, "experts a layer keeps; 1 makes it dense, where such a model type exists"),
        flag("expert_ffn", int, "neurons an expert keeps"),
        flag("shared_ffn", int, "neurons a layer's shared expert keeps"),
        flag("experts_per_token", int, "experts a token is routed to"),
        flag("expert_merge", str, "average experts that go into those that stay: none, m-smoe, nearest or cluster"),
        flag("expert_refit", str, "refit those that stay to the source's output on --data: none, all, or N at a time"),
    ),
    "Vocabulary": (
        counted("vocab", "tokens to keep, the most used ones of --data"),
        flag("vocab_coverage", str, "keep the tokens that are this share of --data: 99.9%"),
        flag("keep_tokens", Path, "a file of tokens, or text, to keep in any case: one a line"),
    ),
    "Linear attention and Mamba": (
        flag("value_heads", int, "value heads linear attention keeps"),
        flag("key_heads", int, "key heads linear attention keeps"),
        flag("mamba_heads", int, "heads a Mamba layer keeps"),
        flag("mamba_head_dim", int, "channels a Mamba head keeps"),
    ),
    "Compensation": (
        flag("compensate", str, "refit what stays to the source's activations: none or least-squares"),
        flag("moments", Path, "from `importance --second-moments` [default: beside the scores]"),
        flag("ridge", str, "relative ridge; auto: by held-out error [default: 1e-2, auto for experts]"),
        flag("select", str, "neurons that stay: by scores, or by residual error once compensated"),
        flag("rotate", bool, "keep directions of the residual stream, not channels (with --compensate)"),
    ),
    "Quantised sources": (
        flag("dequantize", bool, "take FP8 or MXFP4 weights, and write plain ones; sizes may be left out"),
        flag("dtype", str, "type of dequantised weights: bfloat16, float16, float32 [default: bfloat16]"),
    ),
    "Measuring first": (
        flag("samples", int, "calibration samples, when measuring first or refitting experts"),
        flag("seq_len", int, "tokens a sample of those"),
    ),
    "Output": (
        flag("text_only", bool, "of a model of text and images, write the text model alone"),
        counted("max_shard_size", "bytes a weight file may have: 5B, 500M"),
        flag("check", bool, "load the result and compare it with plain trimming, by --data if refitted"),
        flag("force", bool, "use scores although they are of another model"),
        OVERWRITE,
        AS_JSON,
    ),
}


def _act(given: Mapping[str, Any]) -> None:
    from minitron_cli.prune import execute
    from minitron_cli.prune.request import PruneRequest
    from minitron_cli.prune.vocabulary import Counting

    request = PruneRequest(model=require_model(given["model"], NAME), **typed(given, "model", "dry_run", "as_json"))
    as_json = given["as_json"]
    counting = Counting(lambda: byte_progress("counting tokens"), os.cpu_count() or 1)
    if given["dry_run"]:
        resolved = execute.dry_run(request, counting)
        emit(asdict(resolved.facts), as_json, lambda: _show_plan(resolved))
        return
    result = execute.prune(request, _measure, say, counting)
    emit(result.to_json(), as_json, lambda: _show_done(result, request.model))


PANELS = names(_MORE)
command = command_of(
    joined(_FIRST, _MORE),
    "Trim a checkpoint in width and depth. Tensors stream from safetensors to safetensors; the result loads with "
    "from_pretrained.",
    _act,
)


def defaults() -> dict[str, Any]:
    from minitron_cli.prune.request import PruneRequest

    return defaults_of(PruneRequest)


def _measure(wanted: "Measurement") -> None:
    """Importance with its defaults. The verbs meet only here."""
    from minitron_cli.cli.importance import measure

    measure(wanted.model, wanted.output, data=wanted.data, samples=wanted.samples, seq_len=wanted.seq_len,
            second_moments=wanted.second_moments, dequantize=wanted.dequantize)  # fmt: skip


def _show_plan(resolved: "ResolvedPrune") -> None:
    facts = resolved.facts
    rows = [["model type", *facts.model_type]] if len(set(facts.model_type)) > 1 else []
    rows += [[axis, f"{a:,}", f"{b:,}"] for axis, (a, b) in facts.shape.items()]
    rows += [[name, show(a), show(b)] for name, show, (a, b) in (
        ("parameters", "{:,}".format, facts.parameters),
        ("non-embedding", "{:,}".format, facts.non_embedding_parameters),
        ("bytes on disk", bytes_text, facts.bytes),
        ("KV bytes per token", "{:,}".format, facts.kv_bytes_per_token),
        *([("state bytes per sequence", "{:,}".format, facts.state_bytes)] if any(facts.state_bytes) else []),
        ("FLOPs per token", count_text, facts.flops_per_token),
    )]  # fmt: skip
    table(["", "source", "target"], rows)
    if facts.respelling:
        _show_respelling(facts.respelling)
    for warning in (*facts.warnings, *([resolved.missing] if resolved.missing else [])):
        say(f"warning: {warning}")
    speed = "1 GB/s" + " and 100 GFLOP/s" * bool(facts.compensation_flops)
    cost = f"about {bytes_text(facts.peak_memory)} of memory and {facts.seconds:.0f} s at {speed}"
    print(_servable(facts))
    print(f"would write {facts.output}; {cost}")


def _servable(facts: "PruneFacts") -> str:
    """What engines make of the result, in a line."""
    from minitron_cli.spec.engines import lines

    return f"to serve: {'; '.join(lines(facts.servable))}" if facts.servable else ""


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
    print(_servable(facts))
    print(f"{facts.output}: {count_text(after)} parameters, {after / before:.0%} of {count_text(before)}")
    line = command_line(
        "distill", facts.output, "--teacher", source, "--data", "DATA", "-o", f"{facts.output}-distilled"
    )
    if all(left == had for had, left in facts.shape.values()):  # a teacher would have nothing to teach
        line = command_line("importance", facts.output, "--data", "DATA")
    print(f"next: {line}")
