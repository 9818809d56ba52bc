"""The options that `distill` and `train` share, one alias each, and what both do with them."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from minitron_cli.cli.common import bytes_text, count_text, emit, option, parse_count, require_model, say
from minitron_cli.errors import MinitronError

if TYPE_CHECKING:
    from minitron_cli.training.run import Outcome

Data = Annotated[list[str] | None, option("--data", help="training text or token files, SOURCE[:WEIGHT]; repeatable")]
EvalData = Annotated[list[str] | None, option("--eval-data", help="held-out text, evaluated while training")]
Output = Annotated[Path | None, option("-o", "--output", help="output directory [default: MODEL-VERB]")]
Steps = Annotated[
    int | None, option("--steps", help="updates to make [default: one pass over the data]", parser=parse_count)
]
Tokens = Annotated[int | None, option("--tokens", help="tokens to train on, instead of --steps", parser=parse_count)]
Batch = Annotated[int | None, option("--batch", help="sequences an update, over all devices [default: 64]")]
MicroBatch = Annotated[int | None, option("--micro-batch", help="sequences a forward pass [default: chosen]")]
SeqLen = Annotated[int | None, option("--seq-len", help="tokens a sequence [default: the context, at most 4096]")]
Lr = Annotated[float | None, option("--lr", help="peak learning rate [default: 1e-4]")]
MinLr = Annotated[float | None, option("--min-lr", help="learning rate at the end [default: a tenth of the peak]")]
Warmup = Annotated[int | None, option("--warmup", help="steps of linear warm-up [default: 40, a tenth of a short run]")]
Schedule = Annotated[str | None, option("--schedule", help="cosine, linear, constant or wsd [default: cosine]")]
Decay = Annotated[str | None, option("--decay", help="wsd: linear, cosine, sqrt or exponential [default: sqrt]")]
DecayFraction = Annotated[
    float | None, option("--decay-fraction", help="wsd: share of the steps that decay [default: 0.2]")
]
BranchFrom = Annotated[Path | None, option("--branch-from", help="wsd: start the decay from this OUT/run/step-N")]
Phase = Annotated[list[str] | None, option("--phase", help="STEP:W,W,...: other data weights until STEP; repeatable")]
Seed = Annotated[int | None, option("--seed", help="data order and initial weights [default: 0]")]
WeightDecay = Annotated[float | None, option("--weight-decay", help="of matrices; vectors never decay [default: 0.1]")]
Betas = Annotated[tuple[float, float] | None, option("--betas", help="AdamW's two [default: 0.9 0.95]")]
GradClip = Annotated[float | None, option("--grad-clip", help="largest gradient norm [default: 1]")]
SpikeGuard = Annotated[float | None, option("--spike-guard", help="skip updates whose norm is over this many medians")]
SaveEvery = Annotated[int | None, option("--save-every", help="steps between checkpoints [default: a twentieth]")]
Keep = Annotated[int | None, option("--keep", help="checkpoints to keep [default: 2]")]
LogEvery = Annotated[int | None, option("--log-every", help="steps between lines of metrics.jsonl [default: 1]")]
EvalEvery = Annotated[int | None, option("--eval-every", help="steps between evaluations [default: a tenth]")]
EvalWindows = Annotated[int | None, option("--eval-windows", help="windows of --eval-data to evaluate [default: 128]")]
Dtype = Annotated[str | None, option("--dtype", help="compute type: float32 or bfloat16 [default: by device]")]
Device = Annotated[str | None, option("--device", help="cpu, cuda or cuda:N [default: a GPU if there is one]")]
Nproc = Annotated[int, option("--nproc", help="processes on this machine, one per GPU (starts torchrun)")]
CheckpointActivations = Annotated[
    bool | None,
    option("--checkpoint-activations/--no-checkpoint-activations", help="run layers again in the backward pass"),
]
Compile = Annotated[bool | None, option("--compile/--no-compile", help="torch.compile each decoder layer")]
Preset = Annotated[
    str | None, option("--preset", help="published settings: minitron, llama-3.1-minitron, mn-minitron, ...")
]
Separator = Annotated[str | None, option("--separator", help="between documents: auto, bos, eos, bos+eos, none")]
CrossDoc = Annotated[
    bool | None, option("--cross-doc/--no-cross-doc", help="attend over documents of a row [default: cross-doc]")
]
Stream = Annotated[bool | None, option("--stream/--no-stream", help="read the text as it comes, without token files")]
TextField = Annotated[str | None, option("--text-field", help="the column that holds the text")]
ExportDtype = Annotated[str | None, option("--export-dtype", help="type of the saved weights [default: the student's]")]
ExportStep = Annotated[int | None, option("--export-step", help="only export this saved step, to OUTPUT-step-N")]
TensorBoard = Annotated[bool | None, option("--tensorboard/--no-tensorboard", help="also write TensorBoard events")]
BareLimit = Annotated[
    bool | None, option("--bare-limit/--no-bare-limit", help="measure the bare limit first, and log the ratio")
]
Preflight = Annotated[
    bool, option("--preflight/--no-preflight", help="refuse at the start what will not fit in memory")
]
TrustRemoteCode = Annotated[bool | None, option("--trust-remote-code", help="let the model's own code run")]
Overwrite = Annotated[bool, option("--overwrite", help="start again, replacing an output that minitron made")]
DryRun = Annotated[bool, option("--dry-run", help="only say what would be done")]
AsJson = Annotated[bool, option("--json", help="one JSON object on stdout")]

# What the command line has beyond the fields of `Options`.
_CONTROL = ("model", "output", "nproc", "preset", "export_step", "preflight", "overwrite", "dry_run", "as_json")


def launch(verb: str, given: Mapping[str, Any]) -> int:
    """Carry out a training command from its parameters by name; returns the exit code."""
    control = {name: given[name] for name in _CONTROL}
    options = _options(verb, control, {k: v for k, v in given.items() if k not in _CONTROL})
    if control["dry_run"]:
        from minitron_cli.training.preflight import describe

        facts = describe(options, control["nproc"])
        emit(facts, control["as_json"], lambda: _show_plan(facts))
        return 0
    if control["export_step"] is not None:
        return _export(options, control)
    if control["nproc"] > 1 and "WORLD_SIZE" not in os.environ:
        from minitron_cli.training.distributed import World, choose_device, launch_workers
        from minitron_cli.training.run import prepare

        # What is wrong with the request is said once, here, and the data is tokenised before any worker waits for it.
        prepare(options, World(0, control["nproc"], choose_device(options.device)))
        return launch_workers(control["nproc"], sys.argv[1:])
    return _run(options, control)


def record(given: Mapping[str, Any], directory: Path, top_k: int) -> int:
    """Carry out `distill --record-teacher`; returns the exit code."""
    from minitron_cli.training.record import record_teacher

    control = {name: given[name] for name in _CONTROL}
    options = _options("distill", control, {k: v for k, v in given.items() if k not in _CONTROL})
    found = record_teacher(options, directory, top_k, say)
    facts = {"output": str(found.path), "tokens": found.tokens, "bytes": found.bytes, "finished": not found.stopped_by}
    emit(facts, control["as_json"], lambda: _show_recorded(facts, options))
    return found.stopped_by


def _show_recorded(facts: Mapping[str, Any], options: Any) -> None:
    print(f"{facts['output']}: {count_text(facts['tokens'])} tokens recorded, {bytes_text(facts['bytes'])} in all")
    if facts["finished"]:
        data = " ".join(f"--data {source}" for source in options.data)
        print(f"next: minitron distill {options.student} --teacher {facts['output']} {data}")
    else:
        print("next: type the same line again, it goes on from there")


def _options(verb: str, control: Mapping[str, Any], given: Mapping[str, Any]) -> Any:
    from minitron_cli.training.presets import resolve

    model = require_model(control["model"], verb)
    if not given["data"]:
        raise MinitronError(
            f"`minitron {verb}` needs --data", "a .jsonl, .parquet or .txt file, a token directory or a datasets name"
        )
    output = control["output"] or Path(f"{Path(model).name}-{'distilled' if verb == 'distill' else 'trained'}")
    plain = {k: tuple(v) if isinstance(v, list) else str(v) if isinstance(v, Path) else v for k, v in given.items()}
    return resolve({"verb": verb, "student": model, "output": str(output), **plain}, control["preset"])


def _run(options: Any, control: Mapping[str, Any]) -> int:
    from minitron_cli.training.run import train

    outcome = train(options, overwrite=control["overwrite"], preflight=control["preflight"], say=say)
    if os.environ.get("RANK", "0") == "0":
        emit(facts_of(outcome), control["as_json"], lambda: _show(outcome))
    return outcome.stopped_by


def _export(options: Any, control: Mapping[str, Any]) -> int:
    from minitron_cli.training.run import export_step

    step = control["export_step"]
    directory = export_step(options, step, overwrite=control["overwrite"])
    emit({"output": str(directory)}, control["as_json"], lambda: print(f"{directory}: the model after step {step}"))
    return 0


def _show_plan(facts: Mapping[str, Any]) -> None:
    for name, value in facts.items():
        parts = value.items() if isinstance(value, dict) else [("", value)]
        for part, number in parts:
            shown = (
                bytes_text(number) if part or name == "disk" else f"{number:,}" if isinstance(number, int) else number
            )
            print(f"{' '.join((name, part)):>32}  {shown}")


def facts_of(outcome: "Outcome") -> dict[str, Any]:
    """The closing summary as one JSON object."""
    progress = outcome.progress
    return {
        "output": str(outcome.output),
        "finished": not outcome.stopped_by,
        "steps": progress.step,
        "tokens": progress.tokens,
        "flops": progress.flops,
        "seconds": round(progress.seconds, 2),
        "skipped": progress.skipped,
        "loss": {"first": progress.first, "last": progress.last},
        "eval": {"before": outcome.before, "after": outcome.after},
    }


def _show(outcome: "Outcome") -> None:
    progress, options = outcome.progress, outcome.options
    if outcome.stopped_by:
        print(f"stopped after step {progress.step} of {options.steps}; checkpoint in {outcome.output / 'run'}")
        print("next: type the same line again, it goes on from there")
        return
    if outcome.was_done:
        print(f"{outcome.output} is finished already; nothing to do (--overwrite starts again)")
    for name, before, after in _pairs(outcome):
        print(f"{name:>16}  {before:.4f} -> {after:.4f}")
    rate = progress.tokens / progress.seconds if progress.seconds else 0.0
    print(
        f"{progress.step} steps, {count_text(progress.tokens)} tokens, {progress.flops:.3g} FLOPs, {rate:,.0f} tokens/s"
    )
    size = sum(f.stat().st_size for f in outcome.output.glob("*.safetensors"))
    print(f"{outcome.output}: {bytes_text(size)} of weights, loads with from_pretrained")
    print(f"next: {_next(outcome)}")


def _next(outcome: "Outcome") -> str:
    """The line that compares the result with what it learned from, or came from."""
    from minitron_cli.training.settle import split_share

    options = outcome.options
    teachers = [model for model, _ in map(split_share, options.teacher) if (Path(model) / "config.json").is_file()]
    before = teachers or ([] if options.from_scratch else [options.student])
    data = [f"--data {source}" for source in options.eval_data or options.data]
    separator = [] if options.separator == "auto" else [f"--separator {options.separator}"]
    return " ".join(["minitron eval", *before, str(outcome.output), *data, *separator])


def _pairs(outcome: "Outcome") -> list[tuple[str, float, float]]:
    """What there is of before and after: the evaluations where there were any, else the training loss."""
    if outcome.before and outcome.after:
        names = [n for n in outcome.after if n.startswith("eval_") and n in outcome.before]
        return [(n.removeprefix("eval_"), outcome.before[n], outcome.after[n]) for n in names]
    first, last = outcome.progress.first or {}, outcome.progress.last or {}
    return [(f"train {n}", first[n], last[n]) for n in last if n in first and n != "loss"]
