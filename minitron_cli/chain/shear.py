"""`minitron shear`: a training whose masks say what stays, and the trim that follows from them."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from minitron_cli.checkpoint.reader import open_checkpoint, resolve_model
from minitron_cli.errors import MinitronError
from minitron_cli.prune.acceptance import check_accepted, check_strides
from minitron_cli.prune.target import Target, check_something_is_cut, target_shape
from minitron_cli.prune.to_dense import why_sparse
from minitron_cli.prune.write import write_pruned
from minitron_cli.spec.axes import FOLLOWING_AXES
from minitron_cli.spec.plan import Plan
from minitron_cli.spec.shape import cut_flags
from minitron_cli.training.options import Options, check, parse_sizes
from minitron_cli.training.run import Outcome, train


def complete(options: Options) -> Options:
    """The options with every size that follows from those given; refuses what `prune` would refuse to cut."""
    check(options)
    source, sizes = open_checkpoint(resolve_model(options.student)), parse_sizes(options.sizes)
    if any(axis in source.shape for axis in FOLLOWING_AXES):
        raise MinitronError(
            f"no masks can be learned for {options.student}: its projector would have to be cut with the text model",
            "cut it with `minitron prune`, or take the text model out of it first: `minitron prune MODEL --text-only`",
        )
    shape = target_shape(source, Target(sizes))
    check_something_is_cut(source.shape, shape, sizes)
    check_strides(source, shape)
    check_accepted(source, shape)
    flags = cut_flags(source.shape, shape)
    return replace(options, sizes=tuple(sorted(f"{flag}={size}" for flag, size in flags.items())))


def trim(whole: Path, output: Path, *, plan: Plan, facts: Mapping[str, Any]) -> None:
    """Cut what the masks keep, as any other cut: `minitron verify OUT --source OUT/run/masked` derives it again."""
    source = open_checkpoint(whole)
    target = {axis: size for axis, size in plan.target.sizes.items() if size != plan.source[axis]}
    dense = plan.target.get("expert") == 1 and not why_sparse(source.family, plan.target)
    options = {"target": target, "method": "learned"}
    write_pruned(source, replace(plan, dense=dense), output, options=options, facts=facts)


def shear(
    options: Options, *, overwrite: bool = False, preflight: bool = True, say: Callable[[str], None] = lambda text: None
) -> Outcome:
    """Train masks and weights together, and cut; called again, it continues where it stopped."""
    return train(complete(options), overwrite=overwrite, preflight=preflight, say=say, signals=False, trim=trim)
