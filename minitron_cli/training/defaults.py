"""Fill in the options that were left open, once model, data and machine are known; refuse what cannot be trained."""

from collections.abc import Sequence
from dataclasses import replace
from math import ceil
from pathlib import Path

from minitron_cli.checkpoint.reader import load_config
from minitron_cli.errors import MinitronError
from minitron_cli.hf.context import context_length, sequence_length
from minitron_cli.training.options import Options
from minitron_cli.training.schedule import Schedule
from minitron_cli.training.stretches import parse_phases, steps_of_tokens, stretches_of

USUAL_LENGTH = 4096


def is_address(spec: str) -> bool:
    """Whether a teacher is one that a server runs."""
    return spec.startswith(("http://", "https://"))


def split_share(spec: str) -> tuple[str, float]:
    """`MODEL:0.3` -> (MODEL, 0.3); without a number the share is 1."""
    where, colon, last = spec.rpartition(":")
    if not colon or is_address(spec) or Path(spec).exists():
        return spec, 1.0
    try:
        share = float(last)
    except ValueError:
        return spec, 1.0
    if not 0 < share < float("inf"):
        raise MinitronError(f"--teacher {spec}: the share must be above 0", "write it as --teacher MODEL:0.7")
    return where, share


def fill_length(options: Options, models: Sequence[Path]) -> Options:
    """Fix `seq_len`: as asked, or the shortest context among the models, 4096 at the most. No phase goes beyond it."""
    contexts = {str(model): context_length(load_config(model)) for model in models}
    options = replace(options, seq_len=sequence_length(options.seq_len, USUAL_LENGTH, contexts))
    for phase in parse_phases(options):
        sequence_length(phase.seq_len, USUAL_LENGTH, contexts, "--phase: seq-len")
    return options


def fill_steps(options: Options, available: int | None = None) -> Options:
    """Fix `steps`: as asked, from --tokens, or one pass over the `available` tokens (None: their number is not known).

    Data that does not fill a batch is refused.
    """
    largest = max(stretches_of(options), key=lambda stretch: stretch.tokens_per_step)
    if available is not None and available < largest.tokens_per_step:
        raise MinitronError(
            f"the data is too short: {max(0, available) // largest.seq_len:,} windows of {largest.seq_len} tokens, "
            f"a batch takes {largest.batch:,}",
            "give more --data, a smaller --batch or a shorter --seq-len",
        )
    if options.steps is not None:
        return options
    if options.tokens is not None:
        return replace(options, steps=steps_of_tokens(options, options.tokens), tokens=None)
    assert available is not None, "how long to train is said or known"
    return replace(options, steps=steps_of_tokens(options, available, at_most=True))


def fill_cadence(options: Options) -> Options:
    """By default 40 steps of warm-up as for Llama-3.1-Minitron, a tenth of a short run; save twenty times,
    evaluate ten times, update a dynamic mix a hundred times, but not more often than every 50 steps. Masks reach their
    target in a fifth of the steps, as in Sheared-LLaMA."""
    assert options.steps is not None
    tenth = max(50, ceil(options.steps / 10))
    return replace(
        options,
        warmup=min(40, options.steps // 10) if options.warmup is None else options.warmup,
        save_every=options.save_every or max(50, ceil(options.steps / 20)),
        eval_every=options.eval_every or tenth,
        eval_tasks_every=(options.eval_tasks_every or tenth) if options.eval_tasks else None,
        mask_warmup=options.steps // 5 if options.mask_warmup is None else options.mask_warmup,
        mix_every=(options.mix_every or max(50, ceil(options.steps / 100))) if options.mix == "dynamic" else None,
    )


def fill_sharding(options: Options, ranks: int) -> Options:
    """By default several ranks shard the teachers, unless these run on a device of their own."""
    split = options.teacher_device is None if options.shard_teacher is None else options.shard_teacher
    return replace(options, shard_teacher=split and ranks > 1)


def export_steps(options: Options) -> tuple[int, ...]:
    """The steps of `--export-at`, ascending: step numbers or shares of the run (`5%`), several separated by commas."""
    assert options.steps is not None
    found = set()
    for text in (part.strip() for given in options.export_at for part in given.split(",")):
        try:
            step = options.steps * float(text[:-1]) / 100 if text.endswith("%") else int(text)
        except ValueError:
            step = 0
        if not 0 < step <= options.steps:
            raise MinitronError(
                f"--export-at {text}: not a step of this run (1 to {options.steps}) nor a share of it",
                "write it like --export-at 100,500 or --export-at 1%,5%,20%",
            )
        found.add(max(1, round(step)))
    return tuple(sorted(found))


def schedule_of(options: Options, branch_step: int | None) -> Schedule:
    """The learning rate's course; a run that branches off a stable one decays over all the steps it adds."""
    assert options.steps is not None
    assert options.warmup is not None
    decay = round(options.steps * options.decay_fraction) if branch_step is None else options.steps - branch_step
    if branch_step is not None and branch_step >= options.steps:
        raise MinitronError(
            f"--steps {options.steps} is no longer than the run that is branched from (step {branch_step})",
            f"--steps counts from the beginning: give {branch_step} plus the steps of the decay",
        )
    if options.warmup >= options.steps:
        raise MinitronError(
            f"--warmup {options.warmup} is as long as the run ({options.steps} steps)", "lower --warmup or train longer"
        )
    return Schedule(
        options.schedule, options.lr, options.floor_lr(), options.warmup, options.steps, options.decay, max(1, decay)
    )
