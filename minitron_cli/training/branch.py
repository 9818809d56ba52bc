"""Starting a decay from a stable checkpoint of another run (warm-up, stable, decay).

A branch goes on where the rows of its run were. So it may have phases, a batch and weights of its own from there on, as
long as its own plan reads the same rows up to there: a run of `--batch 64` goes on as `--phase N:batch=64 --batch 128`.
"""

from collections.abc import Mapping
from pathlib import Path

from minitron_cli.data.order import Order
from minitron_cli.data.stream import StreamOrder
from minitron_cli.errors import MinitronError
from minitron_cli.spec.limits import flag
from minitron_cli.training import rundir
from minitron_cli.training.inputs import data_digests
from minitron_cli.training.options import Options
from minitron_cli.training.state import naming_others, read_progress
from minitron_cli.training.step_files import STATE
from minitron_cli.training.stretches import parse_phases

# What decides which rows come next, and the optimizer's memory: a branch goes on with both.
_SHARED = ("verb", "seed", "mix", "cross_doc", "stream", "loss", "layer_map", "betas")
_ROWS = ("batch", "seq_len", "phases")


def check_branch(options: Options, order: Order | StreamOrder) -> int:
    """The step at which `options` branch off, whose rows come in this `order`.

    Refuses a checkpoint whose rate was falling already, and one before which other rows were read than in this order.
    """
    assert options.branch_from is not None
    path = Path(options.branch_from)
    if not (path / STATE).is_file():
        raise MinitronError(
            f"--branch-from {path} is not a checkpoint", "give a directory such as OUT/run/step-0001000"
        )
    before, inputs = rundir.read(path.parent)
    with naming_others(path):
        step = read_progress(path).step
    other = _differences(before, options, _SHARED)
    read = {name: digest for name, digest in inputs.items() if name.startswith("data")}
    if not other and not _same_rows(before, options, read, order, step):
        other = _differences(before, options, _ROWS) + ["other data there than here"] * (read != data_digests(order))
    if other:
        raise MinitronError(
            f"{path} belongs to a run of other options: {'; '.join(other)}",
            f"a branch must read the same rows as that run until step {step}: describe them by --phase {step}:..., and "
            "use no rows that are longer than its longest",
        )
    assert before.steps is not None
    stable = before.steps - round(before.steps * before.decay_fraction) if before.schedule == "wsd" else before.steps
    if before.schedule not in ("wsd", "constant") or step > stable or before.branch_from:
        raise MinitronError(
            f"{path} is not stable: its run's rate ({before.schedule}) was falling at step {step}",
            "branch from a --schedule wsd or constant run, before its decay",
        )
    return step


def _differences(before: Options, now: Options, names: tuple[str, ...]) -> list[str]:
    there = {name: (getattr(before, name), getattr(now, name)) for name in names}
    return [f"{flag(name)} {was} there, {is_} here" for name, (was, is_) in there.items() if was != is_]


def _same_rows(before: Options, now: Options, read: Mapping[str, str], order: Order | StreamOrder, step: int) -> bool:
    """Whether a run of `before`, of data with the digests `read`, read what the `order` of `now` reads until `step`."""
    same = read == data_digests(order)
    if not isinstance(order, Order) or before.mix == "dynamic":
        # A stream goes on from an index of its own, a dynamic mix from what its run has computed.
        return same and not _differences(before, now, _ROWS)
    parts = [digest.partition(" x ") for digest in read.values()]
    if [sha for sha, _, _ in parts] != [file.header.tokens_sha256 for file in order.files]:
        return False
    assert before.seq_len is not None
    weights = order.weights if same else tuple(float(weight) for _, _, weight in parts)
    there = Order(order.files, weights, before.seq_len, before.batch, before.seed, parse_phases(before))
    return there.history(step) == order.history(step)
