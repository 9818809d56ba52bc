"""Everything a training run can be asked for, and the checks that need no model and no data."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any

from minitron_cli.data.dynamic import ON_EXHAUSTED
from minitron_cli.data.tokenizer import SEPARATORS
from minitron_cli.errors import MinitronError
from minitron_cli.spec.axes import AXIS_OF_FLAG
from minitron_cli.spec.counts import parse_count
from minitron_cli.spec.limits import SEED, OneOf, Within, above, count, flag, violations
from minitron_cli.training.objectives import KINDS, METRICS, TERMS
from minitron_cli.training.schedule import DECAYS, SCHEDULES

DTYPES = ("auto", "float32", "bfloat16")
MIXES = ("fixed", "dynamic")
EXPORT_DTYPES = ("float32", "bfloat16", "float16")
LOSSES = ("auto", *TERMS)
GRADIENTS = ("auto", "whole", "sharded")

_Steps = Annotated[int | None, count()]


@dataclass(frozen=True, slots=True)
class Options:
    """One run of the trainer. `None` means "decide from the model, the data or the machine" (see defaults.py).

    `batch` is the global batch in sequences, `micro_batch` sequences per forward on one device, `seq_len` tokens. A
    field's limit stands in its annotation and is checked by `check`.
    """

    # What goes in and where it comes out.
    verb: Annotated[str, OneOf(("distill", "train", "shear"))]
    student: str
    data: tuple[str, ...]
    output: str
    teacher: tuple[str, ...] = ()
    eval_data: tuple[str, ...] = ()
    separator: Annotated[str, OneOf(SEPARATORS)] = "auto"
    cross_doc: bool = True
    stream: bool = False
    text_field: str | None = None
    from_scratch: bool = False
    branch_from: str | None = None
    phases: tuple[str, ...] = ()
    # How the data is mixed.
    mix: Annotated[str, OneOf(MIXES)] = "fixed"
    reference_losses: str | None = None
    mix_from: str | None = None
    mix_every: _Steps = None
    mix_rate: Annotated[float, above(0)] = 1.0
    mix_floor: Annotated[float, Within(0, 1)] = 1e-4
    on_exhausted: Annotated[str | None, OneOf(ON_EXHAUSTED)] = None
    # How long, and in what portions.
    steps: _Steps = None
    tokens: Annotated[int | None, count()] = None
    batch: Annotated[int, count(1, 2**20)] = 64
    seq_len: Annotated[int | None, count(2, 2**24)] = None
    seed: Annotated[int, SEED] = 0
    # The optimizer. AdamW as in Megatron's pre-training: no decay on norms and biases.
    lr: Annotated[float, above(0)] = 1e-4
    min_lr: Annotated[float | None, Within(0)] = None
    warmup: Annotated[int | None, count(0)] = None
    schedule: Annotated[str, OneOf(SCHEDULES)] = "cosine"
    decay: Annotated[str, OneOf(DECAYS)] = "sqrt"
    decay_fraction: Annotated[float, Within(0, 1, open_low=True, open_high=False)] = 0.2
    betas: Annotated[tuple[float, float], Within(0, 1)] = (0.9, 0.95)
    eps: Annotated[float, above(0)] = 1e-8
    weight_decay: Annotated[float, Within(0)] = 0.1
    grad_clip: Annotated[float, Within(0, open_low=True, open_high=False)] = 1.0
    spike_guard: Annotated[float | None, above(1)] = None
    # The loss.
    loss: Annotated[str, OneOf(LOSSES)] = "auto"
    kind: Annotated[str, OneOf(KINDS)] = "forward_kl"
    temperature: Annotated[float, above(0)] = 1.0
    beta: Annotated[float, Within(0, 1, open_low=True)] = 0.5
    ce_weight: Annotated[float, Within(0)] = 0.0
    hidden_loss: Annotated[str, OneOf(METRICS)] = "cosine"
    layer_map: tuple[str, ...] = ()
    top_k: Annotated[int, count(1, 2**16)] = 128  # of a teacher that is recorded or served
    # Which of the student's weights are trained (see trainable.py): all unless some are named.
    train_only: tuple[str, ...] = ()
    freeze: tuple[str, ...] = ()
    # Learned masks (verb shear), with the rates of Sheared-LLaMA's released code: what is kept of each axis that is cut
    # ("hidden=504"), the steps in which the target is reached, and how far off it the masks may be at the end.
    sizes: tuple[str, ...] = ()
    mask_lr: Annotated[float, above(0)] = 1.0
    multiplier_lr: Annotated[float, above(0)] = 1.0
    mask_warmup: Annotated[int | None, count(0)] = None
    scores: str | None = None
    max_gap: Annotated[float, above(0)] = 0.05
    # Precision.
    dtype: Annotated[str, OneOf(DTYPES)] = "auto"
    teacher_dtype: Annotated[str, OneOf(DTYPES)] = "auto"
    export_dtype: Annotated[str | None, OneOf(EXPORT_DTYPES)] = None
    # Where and how it is computed: none of it changes the result beyond rounding.
    device: str = "auto"
    teacher_device: str | None = None
    teacher_key_env: str | None = None  # the name of an environment variable; never a key
    shard_teacher: bool | None = None
    gradients: Annotated[str, OneOf(GRADIENTS)] = "auto"
    replicate: Annotated[int, count()] = 1
    micro_batch: Annotated[int | None, count(1, 2**20)] = None
    checkpoint_activations: bool = False
    compile: bool = False
    save_every: _Steps = None
    keep: Annotated[int, count()] = 2
    async_save: bool | None = None
    mirror: str | None = None
    export_at: tuple[str, ...] = ()
    log_every: Annotated[int, count()] = 1
    eval_every: _Steps = None
    eval_windows: Annotated[int, count()] = 128
    eval_tasks: str | None = None
    eval_tasks_every: _Steps = None
    task_limit: Annotated[int, count()] = 100
    include: tuple[str, ...] = ()
    stop_on_regression: bool = False
    tensorboard: bool = False
    trust_remote_code: bool = False

    def floor_lr(self) -> float:
        """The learning rate at the end of the decay; a tenth of the peak unless given."""
        return self.lr / 10 if self.min_lr is None else self.min_lr


_OF_SHEAR = ("sizes", "mask_lr", "multiplier_lr", "mask_warmup")
# Fields that must agree between a run and its resumption. What is absent may change: devices, logging, saving, and the
# inputs' paths, which are compared by content (`digests` in inputs.py). A spike guard may be put on a run in trouble,
# and one whose data has run out may be told what to do then.
IDENTITY = (
    *("verb", "from_scratch", "branch_from", "phases", "cross_doc", "stream", "steps", "batch", "seq_len", "seed"),
    *("lr", "min_lr", "warmup", "schedule", "decay", "decay_fraction", "betas", "eps", "weight_decay", "grad_clip"),
    *("mix", "mix_every", "mix_rate", "mix_floor"),
    *("loss", "kind", "temperature", "beta", "ce_weight", "hidden_loss", "layer_map", "top_k"),
    *("dtype", "teacher_dtype"),
    *("train_only", "freeze"),
    *_OF_SHEAR,
)


def check(options: Options) -> None:
    """Refuse what is wrong with any model and data: every offence in one error."""
    faults = violations(options, flag)
    if not faults:
        faults = _conflicts(options)
    if options.verb == "distill" and not options.teacher:
        faults.append("distill needs a teacher (--teacher MODEL)")
    if faults:
        raise MinitronError("; ".join(faults), f"see `minitron {options.verb} --help`")


def _conflicts(options: Options) -> list[str]:
    """Options that are each allowed and do not go together."""
    o, faults = options, []
    if o.floor_lr() > o.lr:
        faults.append(f"--min-lr must be at most --lr ({o.lr}); got {o.min_lr}")
    if o.schedule == "wsd" and o.decay == "exponential" and o.floor_lr() == 0:
        faults.append("--min-lr must be above 0 for an exponential decay")
    if o.steps is not None and o.tokens is not None:
        faults.append("--steps and --tokens both say how long to train; give one")
    if o.shard_teacher and o.teacher_device:
        faults.append(
            f"--shard-teacher splits it over the devices of the run: leave out --teacher-device {o.teacher_device}"
        )
    faults += _mix_conflicts(o)
    if o.eval_tasks is None and (o.eval_tasks_every or o.include or o.stop_on_regression):
        faults.append("--eval-tasks-every, --include and --stop-on-regression need --eval-tasks")
    if o.branch_from and o.schedule != "wsd":
        faults.append(f"--branch-from starts a decay from a stable checkpoint: needs --schedule wsd, got {o.schedule}")
    if o.verb == "shear":
        faults += _shear_conflicts(o)
    return faults


def _shear_conflicts(o: Options) -> list[str]:
    """What learned masks do not go with."""
    faults = []
    if not o.sizes:
        faults.append("no target size is given (--hidden, --ffn, --heads, --kv-heads, --layers, --experts)")
    for name in ("compile", "from_scratch", "branch_from", "export_at", "eval_tasks"):
        if getattr(o, name):
            faults.append(f"{flag(name)} does not go with learned masks")
    if o.steps is not None and o.mask_warmup is not None and o.mask_warmup >= o.steps:
        faults.append(f"--mask-warmup {o.mask_warmup} is as long as the run ({o.steps} steps)")
    return faults


def of_shear(model: str | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of `minitron shear`, by name, as those of the trainer.

    The loss is "ce" or "logits", which makes the model its own teacher; sizes become one option: kv_heads=4 ->
    sizes=("kv-heads=4",).
    """
    loss = given.get("loss")
    if loss not in (None, "ce", "logits"):
        raise MinitronError(f"--loss {loss} is unknown", "ce, as published, or logits: the model is its own teacher")
    names = {name: name.replace("_", "-") for name in given}
    sizes = [
        f"{flag}={parse_count(given[name])}"
        for name, flag in names.items()
        if flag in AXIS_OF_FLAG and given[name] is not None
    ]
    rest = {name: value for name, value in given.items() if names[name] not in AXIS_OF_FLAG}
    taught = {"teacher": (model,), "loss": "logits"} if loss == "logits" and model else {"teacher": (), "loss": None}
    return {**rest, **taught, "sizes": tuple(sorted(sizes))}


def parse_sizes(sizes: tuple[str, ...]) -> dict[str, int]:
    """What `Options.sizes` keeps, by axis: ("kv-heads=4",) -> {"kv": 4}."""
    found = {}
    for text in sizes:
        name, _, size = text.partition("=")
        if name not in AXIS_OF_FLAG or not size.isdecimal():
            raise MinitronError(f"the size {text!r} cannot be read", f"write AXIS=N, AXIS of {', '.join(AXIS_OF_FLAG)}")
        found[AXIS_OF_FLAG[name]] = int(size)
    return found


def _mix_conflicts(o: Options) -> list[str]:
    if o.mix != "dynamic":
        alone = [flag(n) for n in ("reference_losses", "mix_every", "on_exhausted") if getattr(o, n) is not None]
        return [f"{', '.join(alone)} without --mix dynamic"] if alone else []
    faults = [] if o.reference_losses else ["--mix dynamic needs --reference-losses FILE (minitron reference-loss)"]
    if o.phases:
        faults.append("--mix dynamic computes the weights that --phase would give; choose one")
    if o.stream:
        faults.append("--mix dynamic must know how much there is of each domain, which --stream does not")
    return faults


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
    """The identity fields in which two runs differ, as `--lr 0.0001 -> 0.001` lines.

    Those of learned masks are named where one of the two has masks: defaults that follow from --steps differ always.
    """
    unsaid = () if "shear" in (before.verb, now.verb) else _OF_SHEAR
    return [
        f"{flag(name)} {getattr(before, name)} -> {getattr(now, name)}"
        for name in IDENTITY
        if name not in unsaid and getattr(before, name) != getattr(now, name)
    ]
