"""Starting a decay from a stable checkpoint of another run (warm-up, stable, decay)."""

from collections.abc import Mapping
from pathlib import Path

from minitron_cli.errors import MinitronError
from minitron_cli.training import rundir
from minitron_cli.training.options import Options, flag
from minitron_cli.training.state import naming_others, read_progress
from minitron_cli.training.step_files import STATE

# What decides which rows come next, and the optimizer's memory: a branch goes on with both.
_SHARED = ("verb", "batch", "seq_len", "seed", "phases", "mix", "cross_doc", "stream", "loss", "layer_map", "betas")


def check_branch(options: Options, data: Mapping[str, str]) -> int:
    """The step at which `options` branch off; refuses a checkpoint whose rate was falling already, or of other `data`.

    `data` are the digests of what this run reads (see `inputs.data_digests`).
    """
    assert options.branch_from is not None
    path = Path(options.branch_from)
    if not (path / STATE).is_file():
        raise MinitronError(f"--branch-from {path} is no checkpoint", "give a directory such as OUT/run/step-0001000")
    before, inputs = rundir.read(path.parent)
    with naming_others(path):
        step = read_progress(path).step
    other = [
        f"{flag(n)} {getattr(before, n)} there, {getattr(options, n)} here"
        for n in _SHARED
        if getattr(before, n) != getattr(options, n)
    ]
    if {name: digest for name, digest in inputs.items() if name.startswith("data")} != data:
        other.append("other data there than here")
    if other:
        raise MinitronError(
            f"{path} belongs to a run of other options: {'; '.join(other)}", "a branch goes on with the same rows"
        )
    assert before.steps is not None
    stable = before.steps - round(before.steps * before.decay_fraction) if before.schedule == "wsd" else before.steps
    if before.schedule not in ("wsd", "constant") or step > stable or before.branch_from:
        raise MinitronError(
            f"{path} is not stable: its run's rate ({before.schedule}) was falling at step {step}",
            "branch from a --schedule wsd or constant run, before its decay",
        )
    return step
