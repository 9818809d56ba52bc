"""The options of the commands that train: one line each, in the order of `--help`.

These commands have dozens of options in common, so their signatures are made from these tables instead of being
written out several times. `None` means "not typed": the preset, then the defaults of `Options` decide.
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


TEACHER = (flag("teacher", list[str], "MODEL[:SHARE], a recording, or the address of a server: http://HOST:PORT/v1"),)
FROM_SCRATCH = (flag("from_scratch", bool, "start from random weights, with MODEL's config"),)
DATA = (
    flag("data", list[str], "training text or token files, SOURCE[:WEIGHT]; repeatable"),
    flag("eval_data", list[str], "held-out text, evaluated while training; repeatable"),
    flag("output", Path, "output directory [default: MODEL-trained, -distilled or -sheared]", "-o", "--output"),
    flag("preset", str, "published settings: minitron, llama-3.1-minitron, mn-minitron, ..."),
)
MASKS = (
    flag("scores", Path, "importance scores to initialise the masks from"),
    flag("mask_lr", float, "peak learning rate of the masks"),
    flag("multiplier_lr", float, "peak learning rate of the Lagrange multipliers"),
    flag("mask_warmup", int, "steps over which the target shape is approached [default: a fifth of the run]"),
    flag("max_gap", float, "largest gap between masked share and target at which the cut is made"),
)
LENGTH = (
    counted("steps", "updates to make [default: one pass over the data]"),
    counted("tokens", "tokens to train on, instead of --steps"),
    flag("batch", int, "sequences per update, over all devices"),
    flag("micro_batch", int, "sequences per forward pass on one device [default: by device]"),
    flag("seq_len", int, "tokens per sequence [default: the context, at most 4096]"),
    flag("seed", int, "seed of the data order and of new weights"),
)
LOSS = (
    flag("loss", str, "auto, logits, or logits+hidden[+embedding]"),
    flag("kind", str, "divergence: forward_kl, reverse_kl, jsd or soft_ce"),
    flag("temperature", float, "softmax temperature of teacher and student"),
    flag("beta", float, "--kind jsd: the teacher's share of the mixture"),
    flag("ce_weight", float, "weight of the cross-entropy with the text, added to the divergence"),
    flag("hidden_loss", str, "distance between hidden states: cosine or mse"),
    flag("layer_map", list[str], "blocks to compare, STUDENT:TEACHER, or kept [default: the third last of both]"),
)
# Where the teacher runs, and what is recorded of it or requested from its server.
TEACHER_AT = (
    flag("teacher_dtype", str, "float32 or bfloat16 [default: as --dtype]"),
    flag("teacher_device", str, "where the teacher runs [default: with the student]"),
    flag("shard_teacher", bool, "shard the teacher over the devices [default: if there are several]", negatable=True),
    flag("teacher_key_env", str, "environment variable that holds the key of the teacher's server"),
    flag("record_teacher", Path, "only record the teacher's logits in this directory, to train from later"),
    flag("record", str, "what to record: top-k, or sampled:N (N draws per token) [default: top-k]"),
    flag("top_k", int, "logits per token that are recorded, or requested from a server"),
)
OPTIMIZER = (
    flag("lr", float, "peak learning rate"),
    flag("min_lr", float, "learning rate at the end [default: a tenth of the peak]"),
    flag("warmup", int, "steps of linear warm-up [default: 40, or a tenth of a run under 400 steps]"),
    flag("schedule", str, "cosine, linear, constant or wsd"),
    flag("decay", str, "wsd: linear, cosine, sqrt or exponential"),
    flag("decay_fraction", float, "wsd: share of the steps that decay"),
    flag("branch_from", Path, "wsd: start the decay from this OUT/run/step-N"),
    flag("weight_decay", float, "weight decay of matrices; vectors have none"),
    flag("betas", tuple[float, float], "beta1 and beta2 of AdamW"),
    flag("grad_clip", float, "gradient norm to clip at"),
    flag("train_only", list[str], "train these weights alone, e.g. mlp.gate; repeatable"),
    flag("freeze", list[str], "leave these weights as they are, e.g. mlp.experts; repeatable"),
    flag("spike_guard", float, "skip updates whose gradient norm exceeds this multiple of the running median"),
)
TEXT = (
    flag("separator", str, "between documents: auto, bos, eos, bos+eos, none"),
    flag("text_field", str, "the column that holds the text"),
    flag("phases", list[str], "STEP:W,W,...[,seq-len=N][,batch=N]: what holds until STEP; repeatable", "--phase"),
    flag("cross_doc", bool, "attend across the documents of a row", negatable=True),
    flag("stream", bool, "tokenise while training, without a token file", negatable=True),
)
MIX = (
    flag("mix", str, "fixed, or dynamic: the weights of the data follow the held-out losses"),
    flag("reference_losses", Path, "dynamic: file of `minitron reference-loss`"),
    flag("mix_from", Path, "start with the final weights of this run, which had --mix dynamic"),
    flag("mix_every", int, "dynamic: steps between updates [default: 1/100 of the run, at least 50]"),
    flag("mix_rate", float, "dynamic: how fast weights grow with the excess loss"),
    flag("mix_floor", float, "dynamic: share of the rows that is spread evenly over the domains"),
    flag("on_exhausted", str, "dynamic, when a domain runs out: error, repeat or drop-domain [default: error]"),
)
MACHINE = (
    flag("dtype", str, "compute type: float32 or bfloat16 [default: by device]"),
    flag("device", str, "cpu, cuda or cuda:N [default: a GPU if there is one]"),
    flag("nproc", int, "processes on this machine, one per GPU", default=1),
    flag("checkpoint_activations", bool, "save memory: recompute each block in the backward pass", negatable=True),
    flag("gradients", str, "accumulate gradients whole on each device, or sharded [default: what fits]"),
    flag("replicate", int, "copies of the sharded weights, e.g. one per node"),
    flag("compile", bool, "torch.compile each block", negatable=True),
    flag("preflight", bool, "refuse at the start a run that does not fit", negatable=True, default=True),
    flag("trust_remote_code", bool, "let the model's own code run"),
)
WATCHING = (
    flag("save_every", int, "steps between checkpoints [default: 1/20 of the run, at least 50]"),
    flag("keep", int, "checkpoints to keep"),
    flag("async_save", bool, "write checkpoints in the background [default: on a GPU with memory]", negatable=True),
    flag("mirror", str, "also keep steps and result at this address: s3://BUCKET/RUN, gs://..., file:///..."),
    flag("export_at", list[str], "also export the student at these steps: 100,500 or 1%,5%,20%"),
    flag("log_every", int, "steps between lines of metrics.jsonl"),
    flag("eval_every", int, "steps between evaluations [default: 1/10 of the run, at least 50]"),
    flag("eval_windows", int, "windows to evaluate of each --eval-data"),
    flag("eval_tasks", str, "lm-eval tasks to evaluate the student on while it trains: a,b"),
    flag("eval_tasks_every", int, "steps between these [default: 1/10 of the run, at least 50]"),
    flag("task_limit", int, "--eval-tasks: documents of each task"),
    flag("include", list[str], "--eval-tasks: directory of task YAMLs of your own; repeatable"),
    flag("stop_on_regression", bool, "stop if a score falls 3 standard errors below its best", negatable=True),
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
