"""The options of `distill` and `train`: one line each, in the order of `--help`.

The two commands have dozens of options in common, so their signatures are made from these tables instead of being
written out twice. `None` means "not typed": the preset, then the defaults of `Options` decide.
"""

from collections.abc import Sequence
from inspect import Parameter
from pathlib import Path
from typing import Any

from minitron_cli.cli.parameters import AS_JSON, counted, defaults_of, flag


def sizes() -> tuple[Parameter, ...]:
    """An option for every axis that masks can cut."""
    from minitron_cli.spec.axes import MASKED_AXES

    return tuple(counted(a.flag.replace("-", "_"), f"{a.words} to keep") for a in MASKED_AXES)


def masked_loss() -> Parameter:
    """The loss under masks: with the model itself as the teacher, or without one."""
    return flag("loss", str, "ce, as published, or logits: MODEL teaches [default: ce]")


def without(parameters: Sequence[Parameter], *names: str) -> tuple[Parameter, ...]:
    """The parameters but those of these names."""
    assert set(names) <= {p.name for p in parameters}, names
    return tuple(p for p in parameters if p.name not in names)


TEACHER = (flag("teacher", list[str], "MODEL[:SHARE] to learn from, a recorded one, or http://HOST:PORT/v1"),)
FROM_SCRATCH = (flag("from_scratch", bool, "start from new weights, of MODEL's config"),)
DATA = (
    flag("data", list[str], "training text or token files, SOURCE[:WEIGHT]; repeatable"),
    flag("eval_data", list[str], "held-out text, evaluated while training; repeatable"),
    flag("output", Path, "output directory [default: MODEL-VERB]", "-o", "--output"),
    flag("preset", str, "published settings: minitron, llama-3.1-minitron, mn-minitron, ..."),
)
MASKS = (
    flag("scores", Path, "start the masks by the ranks of these scores"),
    flag("mask_lr", float, "peak learning rate of the masks"),
    flag("multiplier_lr", float, "peak learning rate of the multipliers, which ascend"),
    flag("mask_warmup", int, "steps in which the target is reached [default: a fifth]"),
    flag("max_gap", float, "how far off their target the masked shares may be at the end"),
)
LENGTH = (
    counted("steps", "updates to make [default: one pass over the data]"),
    counted("tokens", "tokens to train on, instead of --steps"),
    flag("batch", int, "sequences an update, over all devices"),
    flag("micro_batch", int, "sequences a forward pass [default: chosen]"),
    flag("seq_len", int, "tokens a sequence [default: the context, at most 4096]"),
    flag("seed", int, "data order and initial weights"),
)
LOSS = (
    flag("loss", str, "auto, logits, or logits+hidden[+embedding]"),
    flag("kind", str, "forward_kl, reverse_kl, jsd or soft_ce"),
    flag("temperature", float, "of both softmaxes"),
    flag("beta", float, "--kind jsd: the teacher's share of the mixture"),
    flag("ce_weight", float, "weight at which the hard-label loss is added"),
    flag("hidden_loss", str, "cosine or mse"),
    flag("layer_map", list[str], "STUDENT:TEACHER blocks, or kept [default: third last of both]"),
)
# Where the teacher is, and what it says where it is not in memory.
TEACHER_AT = (
    flag("teacher_dtype", str, "float32 or bfloat16 [default: as --dtype]"),
    flag("teacher_device", str, "where the teacher runs [default: with the student]"),
    flag("shard_teacher", bool, "split the teacher over the devices [default: over several]", negatable=True),
    flag("teacher_key_env", str, "a served teacher: the environment variable with its key"),
    flag("record_teacher", Path, "only write what the teacher says there, to train from later"),
    flag("record", str, "what to record: top-k, or sampled:N (N draws a token) [default: top-k]"),
    flag("top_k", int, "ids of each token that are recorded, or asked of a server"),
)
OPTIMIZER = (
    flag("lr", float, "peak learning rate"),
    flag("min_lr", float, "learning rate at the end [default: a tenth of the peak]"),
    flag("warmup", int, "steps of linear warm-up [default: 40, a tenth of a short run]"),
    flag("schedule", str, "cosine, linear, constant or wsd"),
    flag("decay", str, "wsd: linear, cosine, sqrt or exponential"),
    flag("decay_fraction", float, "wsd: share of the steps that decay"),
    flag("branch_from", Path, "wsd: start the decay from this OUT/run/step-N"),
    flag("weight_decay", float, "decay of matrices; vectors never decay"),
    flag("betas", tuple[float, float], "AdamW's two"),
    flag("grad_clip", float, "largest gradient norm"),
    flag("train_only", list[str], "train these weights alone, e.g. mlp.gate; repeatable"),
    flag("freeze", list[str], "leave these weights as they are, e.g. mlp.experts; repeatable"),
    flag("spike_guard", float, "leave out updates whose norm is over this many medians"),
)
TEXT = (
    flag("separator", str, "between documents: auto, bos, eos, bos+eos, none"),
    flag("text_field", str, "the column that holds the text"),
    flag("phases", list[str], "STEP:W,W,...[,seq-len=N][,batch=N]: others until STEP; repeatable", "--phase"),
    flag("cross_doc", bool, "attend over the documents of a row", negatable=True),
    flag("stream", bool, "read the text as it comes, without token files", negatable=True),
)
MIX = (
    flag("mix", str, "fixed, or dynamic: weights of the data follow the held-out losses"),
    flag("reference_losses", Path, "dynamic: the losses to reach (reference-loss)"),
    flag("mix_from", Path, "begin with the weights that this dynamic run ended with"),
    flag("mix_every", int, "dynamic: steps between updates [default: a hundredth, at least 50]"),
    flag("mix_rate", float, "dynamic: how fast weights grow with the excess loss"),
    flag("mix_floor", float, "dynamic: share that is spread evenly, so that none vanishes"),
    flag("on_exhausted", str, "dynamic: error, repeat or drop-domain [default: error]"),
)
MACHINE = (
    flag("dtype", str, "compute type: float32 or bfloat16 [default: by device]"),
    flag("device", str, "cpu, cuda or cuda:N [default: a GPU if there is one]"),
    flag("nproc", int, "processes on this machine, one per GPU (starts torchrun)", default=1),
    flag("checkpoint_activations", bool, "run blocks again in the backward pass", negatable=True),
    flag("gradients", str, "while micro-batches add up: whole, or sharded [default: what fits]"),
    flag("replicate", int, "copies of the weights, each over as many devices: one a node"),
    flag("compile", bool, "torch.compile each block", negatable=True),
    flag("preflight", bool, "refuse at the start what will not fit", negatable=True, default=True),
    flag("trust_remote_code", bool, "let the model's own code run"),
)
WATCHING = (
    flag("save_every", int, "steps between checkpoints [default: a twentieth, at least 50]"),
    flag("keep", int, "checkpoints to keep"),
    flag("async_save", bool, "write them while the steps go on [default: on a GPU, if memory allows]", negatable=True),
    flag("mirror", str, "also keep steps and result at this address: s3://BUCKET/RUN, gs://..., file:///..."),
    flag("export_at", list[str], "also export the student at these steps: 100,500 or 1%,5%,20%"),
    flag("log_every", int, "steps between lines of metrics.jsonl"),
    flag("eval_every", int, "steps between evaluations [default: a tenth, at least 50]"),
    flag("eval_windows", int, "windows of each --eval-data"),
    flag("eval_tasks", str, "lm-eval tasks that the student is graded by while it trains: a,b"),
    flag("eval_tasks_every", int, "steps between gradings [default: a tenth, at least 50]"),
    flag("task_limit", int, "--eval-tasks: documents of each task"),
    flag("include", list[str], "--eval-tasks: directory of task YAMLs of your own; repeatable"),
    flag("stop_on_regression", bool, "--eval-tasks: stop 3 standard errors below a score's best", negatable=True),
    flag("tensorboard", bool, "also write TensorBoard events", negatable=True),
    flag("export_dtype", str, "type of the saved weights [default: the student's]"),
    flag("export_step", int, "only export this saved step, to OUTPUT-step-N"),
    flag("overwrite", bool, "start again, replacing an output that minitron made"),
    flag("dry_run", bool, "make every check, and only say what would be done"),
    AS_JSON,
)
RUNNING = (*TEXT, *MIX, *MACHINE, *WATCHING)
# What help shows first; the rest is grouped.
FIRST = frozenset({"lr", "nproc", "dry_run", "steps", "tokens", "batch", "seq_len"})
_GROUPS = {
    "Masks": MASKS,
    "Batches": LENGTH,
    "Loss": LOSS,
    "Teacher": TEACHER_AT,
    "Optimizer": OPTIMIZER,
    "Text": TEXT,
    "Mix": MIX,
    "Machine": MACHINE,
    "Saving": WATCHING,
}


def only(*names: str) -> tuple[Parameter, ...]:
    """The options of these names, in this order."""
    known = {p.name: p for group in _GROUPS.values() for p in group}
    return tuple(known[name] for name in names)


def panels_of(parameters: Sequence[Parameter], first: frozenset[str] = FIRST) -> dict[str, list[str]]:
    """The groups of a command with these parameters, but for those that its help shows `first`."""
    own = {parameter.name for parameter in parameters} - first
    return {title: [p.name for p in group if p.name in own] for title, group in _GROUPS.items()}


def defaults() -> dict[str, Any]:
    """The plain defaults of a run, by option."""
    from minitron_cli.training.options import Options

    return defaults_of(Options)
