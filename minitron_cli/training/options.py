"""Everything a training run can be asked for, and the checks that need no model and no data."""

import math
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from minitron_cli.errors import MinitronError
from minitron_cli.training.schedule import DECAYS, SCHEDULES

DTYPES = ("auto", "float32", "bfloat16")
KINDS = ("forward_kl", "reverse_kl", "jsd", "soft_ce")
LOSSES = ("auto", "logits", "logits+hidden", "logits+embedding", "logits+hidden+embedding")


@dataclass(frozen=True, slots=True)
class Options:
    """One run of the trainer. `None` means "decide from the model, the data or the machine"; `settle` decides.

    `batch` is the global batch in sequences, `micro_batch` sequences per forward on one device, `seq_len` tokens.
    """

    # What goes in and where it comes out.
    verb: str
    student: str
    data: tuple[str, ...]
    output: str
    teacher: tuple[str, ...] = ()
    eval_data: tuple[str, ...] = ()
    separator: str = "auto"
    cross_doc: bool = True
    stream: bool = False
    text_field: str | None = None
    from_scratch: bool = False
    branch_from: str | None = None
    phases: tuple[str, ...] = ()
    # How long, and in what portions.
    steps: int | None = None
    tokens: int | None = None
    batch: int = 64
    seq_len: int | None = None
    seed: int = 0
    # The optimizer. AdamW as in Megatron's pre-training: no decay on norms and biases.
    lr: float = 1e-4
    min_lr: float | None = None
    warmup: int | None = None
    schedule: str = "cosine"
    decay: str = "sqrt"
    decay_fraction: float = 0.2
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    grad_clip: float = 1.0
    spike_guard: float | None = None
    # The loss.
    loss: str = "auto"
    kind: str = "forward_kl"
    temperature: float = 1.0
    beta: float = 0.5
    ce_weight: float = 0.0
    hidden_loss: str = "cosine"
    layer_map: tuple[str, ...] = ()
    loss_impl: Literal["fused", "naive"] = "fused"
    # Precision.
    dtype: str = "auto"
    teacher_dtype: str = "auto"
    export_dtype: str | None = None
    # Where and how it is computed: none of it changes the result beyond rounding.
    device: str = "auto"
    teacher_device: str | None = None
    shard_teacher: bool = False
    micro_batch: int | None = None
    checkpoint_activations: bool = False
    compile: bool = False
    save_every: int | None = None
    keep: int = 2
    log_every: int = 1
    eval_every: int | None = None
    eval_windows: int = 128
    tensorboard: bool = False
    bare_limit: bool = False
    trust_remote_code: bool = False

    def floor_lr(self) -> float:
        """The learning rate at the end of the decay; a tenth of the peak unless given."""
        return self.lr / 10 if self.min_lr is None else self.min_lr


# Fields that must agree between a run and its resumption. What is absent may change: devices, logging, saving, and the
# inputs' paths, which are compared by content (`digests` in inputs.py). A spike guard may be put on a run in trouble.
IDENTITY = (
    *("verb", "from_scratch", "branch_from", "phases", "cross_doc", "stream", "steps", "batch", "seq_len", "seed"),
    *("lr", "min_lr", "warmup", "schedule", "decay", "decay_fraction", "betas", "eps", "weight_decay", "grad_clip"),
    *("loss", "kind", "temperature", "beta", "ce_weight", "hidden_loss", "layer_map", "dtype", "teacher_dtype"),
)


def check(options: Options) -> None:
    """Refuse what no model or data can make right: every offender in one error."""
    faults = [*_choices(options), *_ranges(options)]
    if options.verb == "distill" and not options.teacher:
        faults.append("distill needs a teacher (--teacher MODEL)")
    if options.steps is not None and options.tokens is not None:
        faults.append("--steps and --tokens both say how long to train; give one")
    if options.branch_from and options.schedule != "wsd":
        faults.append(
            f"--branch-from starts a decay from a stable checkpoint: needs --schedule wsd, got {options.schedule}"
        )
    if faults:
        raise MinitronError("; ".join(faults), f"see `minitron {options.verb} --help`")


def _choices(options: Options) -> list[str]:
    allowed = {
        "schedule": SCHEDULES,
        "decay": DECAYS,
        "dtype": DTYPES,
        "teacher_dtype": DTYPES,
        "kind": KINDS,
        "loss": LOSSES,
        "hidden_loss": ("cosine", "mse"),
        "loss_impl": ("fused", "naive"),
    }
    return [
        f"{flag(name)} must be one of {', '.join(values)}; got {getattr(options, name)!r}"
        for name, values in allowed.items()
        if getattr(options, name) not in values
    ]


def _ranges(options: Options) -> list[str]:
    """Numbers out of range; NaN fails every comparison, so each test is written as what must hold."""
    o = options
    must: list[tuple[str, bool, str]] = [
        ("lr", 0 < o.lr < math.inf, "above 0"),
        ("min_lr", 0 <= o.floor_lr() <= o.lr, f"between 0 and --lr ({o.lr})"),
        ("batch", o.batch >= 1, "at least 1"),
        ("micro_batch", o.micro_batch is None or o.micro_batch >= 1, "at least 1"),
        ("steps", o.steps is None or o.steps >= 1, "at least 1"),
        ("tokens", o.tokens is None or o.tokens >= 1, "at least 1"),
        ("seq_len", o.seq_len is None or o.seq_len >= 2, "at least 2: one token to read, one to predict"),
        ("warmup", o.warmup is None or o.warmup >= 0, "0 or more"),
        ("decay_fraction", 0 < o.decay_fraction <= 1, "in (0, 1]"),
        ("betas", all(0 <= b < 1 for b in o.betas), "in [0, 1)"),
        ("eps", o.eps > 0, "above 0"),
        ("weight_decay", 0 <= o.weight_decay < math.inf, "0 or more"),
        ("grad_clip", o.grad_clip > 0, "above 0 (inf for none)"),
        ("spike_guard", o.spike_guard is None or o.spike_guard > 1, "above 1"),
        ("temperature", 0 < o.temperature < math.inf, "above 0"),
        ("beta", 0 < o.beta < 1, "in (0, 1)"),
        ("ce_weight", 0 <= o.ce_weight <= 1, "in [0, 1]"),
        ("keep", o.keep >= 1, "at least 1"),
        ("log_every", o.log_every >= 1, "at least 1"),
        ("save_every", o.save_every is None or o.save_every >= 1, "at least 1"),
        ("eval_every", o.eval_every is None or o.eval_every >= 1, "at least 1"),
        ("eval_windows", o.eval_windows >= 1, "at least 1"),
        ("seed", o.seed >= 0, "0 or more"),
    ]
    if o.schedule == "wsd" and o.decay == "exponential":
        must.append(("min_lr", o.floor_lr() > 0, "above 0 for an exponential decay"))
    return [f"{flag(name)} must be {rule}; got {getattr(o, name)}" for name, holds, rule in must if not holds]


def flag(name: str) -> str:
    """`min_lr` -> `--min-lr`."""
    return "--" + name.replace("_", "-")


def to_json(options: Options) -> dict[str, Any]:
    """Plain JSON values, tuples as lists."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(options).items()}


def from_json(values: dict[str, Any]) -> Options:
    """The inverse of `to_json`; a field this version does not know is an error."""
    known = {f.name: f for f in fields(Options)}
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise MinitronError(
            f"unknown training options in the run directory: {', '.join(unknown)}",
            "was it written by a newer minitron?",
        )
    plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    return Options(**plain)


def differences(before: Options, now: Options) -> list[str]:
    """The identity fields in which two runs differ, as `--lr 0.0001 -> 0.001` lines."""
    return [
        f"{flag(name)} {getattr(before, name)} -> {getattr(now, name)}"
        for name in IDENTITY
        if getattr(before, name) != getattr(now, name)
    ]
