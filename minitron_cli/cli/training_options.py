"""The options of `distill` and `train`: one line each, in the order of `--help`.

The two commands have dozens of options in common, so their signatures are made from these tables instead of being
written out twice. `None` means "not typed": the preset, then the defaults of `Options` decide.
"""

from collections.abc import Callable, Mapping, Sequence
from inspect import Parameter, Signature
from pathlib import Path
from typing import Annotated, Any

import typer

from minitron_cli.cli.common import argument, option, parse_count


def _option(name: str, kind: Any, *flags: str, help: str, default: Any = None, **settings: Any) -> Parameter:
    """A keyword parameter `name` that typer reads as an option."""
    typed = kind if default is not None else kind | None
    annotation = Annotated[typed, option(*flags, help=help, **settings)]  # type: ignore[valid-type]
    return Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def sizes() -> tuple[Parameter, ...]:
    """An option for every axis that masks can cut."""
    from minitron_cli.spec.axes import MASKED_AXES

    return tuple(
        _option(a.flag.replace("-", "_"), int, f"--{a.flag}", help=f"{a.words} to keep", parser=parse_count)
        for a in MASKED_AXES
    )


def masked_loss() -> Parameter:
    """The loss under masks: with the model itself as the teacher, or without one."""
    return _option("loss", str, "--loss", help="ce, as published, or logits: MODEL teaches [default: ce]")


def without(parameters: Sequence[Parameter], *names: str) -> tuple[Parameter, ...]:
    """The parameters but those of these names."""
    assert set(names) <= {p.name for p in parameters}, names
    return tuple(p for p in parameters if p.name not in names)


def model(metavar: str) -> Parameter:
    """The one positional: the model to train."""
    what = argument(metavar, help="the model to train: a directory or a hub id")
    return Parameter("model", Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[str | None, what])


TEACHER = (
    _option("teacher", list[str], "--teacher", help="MODEL[:SHARE] to learn from, or a recorded one; repeatable"),
)
FROM_SCRATCH = (_option("from_scratch", bool, "--from-scratch", help="start from new weights, of MODEL's config"),)
DATA = (
    _option("data", list[str], "--data", help="training text or token files, SOURCE[:WEIGHT]; repeatable"),
    _option("eval_data", list[str], "--eval-data", help="held-out text, evaluated while training; repeatable"),
    _option("output", Path, "-o", "--output", help="output directory [default: MODEL-VERB]"),
    _option("preset", str, "--preset", help="published settings: minitron, llama-3.1-minitron, mn-minitron, ..."),
)
MASKS = (
    _option("scores", Path, "--scores", help="start the masks by the ranks of these scores"),
    _option("mask_lr", float, "--mask-lr", help="peak learning rate of the masks"),
    _option("multiplier_lr", float, "--multiplier-lr", help="peak learning rate of the multipliers, which ascend"),
    _option("mask_warmup", int, "--mask-warmup", help="steps in which the target is reached [default: a fifth]"),
    _option("max_gap", float, "--max-gap", help="how far off their target the masked shares may be at the end"),
)
LENGTH = (
    _option("steps", int, "--steps", help="updates to make [default: one pass over the data]", parser=parse_count),
    _option("tokens", int, "--tokens", help="tokens to train on, instead of --steps", parser=parse_count),
    _option("batch", int, "--batch", help="sequences an update, over all devices"),
    _option("micro_batch", int, "--micro-batch", help="sequences a forward pass [default: chosen]"),
    _option("seq_len", int, "--seq-len", help="tokens a sequence [default: the context, at most 4096]"),
    _option("seed", int, "--seed", help="data order and initial weights"),
)
LOSS = (
    _option("loss", str, "--loss", help="auto, logits, or logits+hidden[+embedding]"),
    _option("kind", str, "--kind", help="forward_kl, reverse_kl, jsd or soft_ce"),
    _option("temperature", float, "--temperature", help="of both softmaxes"),
    _option("beta", float, "--beta", help="of --kind jsd: the teacher's share of the mixture"),
    _option("ce_weight", float, "--ce-weight", help="weight at which the hard-label loss is added"),
    _option("hidden_loss", str, "--hidden-loss", help="cosine or mse"),
    _option(
        "layer_map", list[str], "--layer-map", help="STUDENT:TEACHER blocks, or kept [default: third last of both]"
    ),
    _option("teacher_dtype", str, "--teacher-dtype", help="float32 or bfloat16 [default: as --dtype]"),
    _option("teacher_device", str, "--teacher-device", help="where the teacher runs [default: with the student]"),
    _option(
        "shard_teacher",
        bool,
        "--shard-teacher/--no-shard-teacher",
        help="split it over the devices [default: where there are several]",
    ),
    _option(
        "record_teacher", Path, "--record-teacher", help="only write what the teacher says there, to train from later"
    ),
    _option("record", str, "--record", help="what: top-k, or sampled:N, N draws from it a token [default: top-k]"),
    _option("top_k", int, "--top-k", help="likeliest ids of each token that are recorded"),
)
OPTIMIZER = (
    _option("lr", float, "--lr", help="peak learning rate"),
    _option("min_lr", float, "--min-lr", help="learning rate at the end [default: a tenth of the peak]"),
    _option("warmup", int, "--warmup", help="steps of linear warm-up [default: 40, a tenth of a short run]"),
    _option("schedule", str, "--schedule", help="cosine, linear, constant or wsd"),
    _option("decay", str, "--decay", help="wsd: linear, cosine, sqrt or exponential"),
    _option("decay_fraction", float, "--decay-fraction", help="wsd: share of the steps that decay"),
    _option("branch_from", Path, "--branch-from", help="wsd: start the decay from this OUT/run/step-N"),
    _option("weight_decay", float, "--weight-decay", help="of matrices; vectors never decay"),
    _option("betas", tuple[float, float], "--betas", help="AdamW's two"),
    _option("grad_clip", float, "--grad-clip", help="largest gradient norm"),
    _option("train_only", list[str], "--train-only", help="train these weights alone, e.g. mlp.gate; repeatable"),
    _option("freeze", list[str], "--freeze", help="leave these weights as they are, e.g. mlp.experts; repeatable"),
    _option("spike_guard", float, "--spike-guard", help="leave out updates whose norm is over this many medians"),
)
TEXT = (
    _option("separator", str, "--separator", help="between documents: auto, bos, eos, bos+eos, none"),
    _option("text_field", str, "--text-field", help="the column that holds the text"),
    _option("phases", list[str], "--phase", help="STEP:W,W,...: other data weights until STEP; repeatable"),
    _option("cross_doc", bool, "--cross-doc/--no-cross-doc", help="attend over the documents of a row"),
    _option("stream", bool, "--stream/--no-stream", help="read the text as it comes, without token files"),
)
MIX = (
    _option("mix", str, "--mix", help="fixed, or dynamic: weights of the data follow the held-out losses"),
    _option("reference_losses", Path, "--reference-losses", help="dynamic: the losses to reach (reference-loss)"),
    _option("mix_from", Path, "--mix-from", help="begin with the weights that this dynamic run ended with"),
    _option("mix_every", int, "--mix-every", help="dynamic: steps between updates [default: a hundredth, at least 50]"),
    _option("mix_rate", float, "--mix-rate", help="dynamic: how fast weights grow with the excess loss"),
    _option("mix_floor", float, "--mix-floor", help="dynamic: share that is spread evenly, so that none vanishes"),
    _option("on_exhausted", str, "--on-exhausted", help="dynamic: error, repeat or drop-domain [default: error]"),
)
MACHINE = (
    _option("dtype", str, "--dtype", help="compute type: float32 or bfloat16 [default: by device]"),
    _option("device", str, "--device", help="cpu, cuda or cuda:N [default: a GPU if there is one]"),
    _option("nproc", int, "--nproc", help="processes on this machine, one per GPU (starts torchrun)", default=1),
    _option(
        *("checkpoint_activations", bool, "--checkpoint-activations/--no-checkpoint-activations"),
        help="run blocks again in the backward pass",
    ),
    _option("gradients", str, "--gradients", help="while micro-batches add up: whole, or sharded [default: what fits]"),
    _option("replicate", int, "--replicate", help="copies of the weights, each over as many devices: one a node"),
    _option("compile", bool, "--compile/--no-compile", help="torch.compile each block"),
    _option(
        "preflight", bool, "--preflight/--no-preflight", help="refuse at the start what will not fit", default=True
    ),
    _option("trust_remote_code", bool, "--trust-remote-code", help="let the model's own code run"),
)
WATCHING = (
    _option("save_every", int, "--save-every", help="steps between checkpoints [default: a twentieth]"),
    _option("keep", int, "--keep", help="checkpoints to keep"),
    _option("export_at", list[str], "--export-at", help="also export the student at these steps: 100,500 or 1%,5%,20%"),
    _option("log_every", int, "--log-every", help="steps between lines of metrics.jsonl"),
    _option("eval_every", int, "--eval-every", help="steps between evaluations [default: a tenth]"),
    _option("eval_windows", int, "--eval-windows", help="windows of each --eval-data"),
    _option("eval_tasks", str, "--eval-tasks", help="lm-eval tasks that the student is graded by while it trains: a,b"),
    _option("eval_tasks_every", int, "--eval-tasks-every", help="steps between gradings [default: a tenth]"),
    _option("task_limit", int, "--task-limit", help="--eval-tasks: documents of each task"),
    _option("include", list[str], "--include", help="--eval-tasks: directory of task YAMLs of your own; repeatable"),
    _option(
        *("stop_on_regression", bool, "--stop-on-regression/--no-stop-on-regression"),
        help="--eval-tasks: stop where a score falls 3 standard errors below its best",
    ),
    _option("tensorboard", bool, "--tensorboard/--no-tensorboard", help="also write TensorBoard events"),
    _option("export_dtype", str, "--export-dtype", help="type of the saved weights [default: the student's]"),
    _option("export_step", int, "--export-step", help="only export this saved step, to OUTPUT-step-N"),
    _option(
        "overwrite", bool, "--overwrite", help="start again, replacing an output that minitron made", default=False
    ),
    _option("dry_run", bool, "--dry-run", help="make every check, and only say what would be done", default=False),
    _option("as_json", bool, "--json", help="one JSON object on stdout", default=False),
)
RUNNING = (*TEXT, *MIX, *MACHINE, *WATCHING)
# What help shows first; the rest is grouped.
FIRST = frozenset({"teacher", "loss", "lr", "nproc", "dry_run", "steps", "tokens", "batch", "seq_len"})
_GROUPS = {
    "Masks": MASKS,
    "Batches": LENGTH,
    "Loss": LOSS,
    "Optimizer": OPTIMIZER,
    "Text": TEXT,
    "Mix": MIX,
    "Machine": MACHINE,
    "Saving": WATCHING,
}


def panels_of(parameters: Sequence[Parameter], first: frozenset[str] = FIRST) -> dict[str, list[str]]:
    """The groups of a command with these parameters, but for those that its help shows `first`."""
    own = {parameter.name for parameter in parameters} - first
    return {title: [p.name for p in group if p.name in own] for title, group in _GROUPS.items()}


def defaults() -> dict[str, Any]:
    """The plain defaults of a run, by option."""
    from dataclasses import MISSING, fields

    from minitron_cli.training.options import Options

    found = {f.name: f.default for f in fields(Options) if f.default is not MISSING}
    return {name: value for name, value in found.items() if value is not None and value is not False and value != ()}


def command_of(parameters: Sequence[Parameter], about: str, act: Callable[[Mapping[str, Any]], int]) -> Any:
    """A typer command with these parameters and help text, that exits with what `act` returns for them."""

    def command(**given: Any) -> None:
        raise typer.Exit(act(given))

    command.__doc__ = about
    command.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    return command
