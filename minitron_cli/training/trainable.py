"""Which weights of the student a run trains: all, those that `--train-only` names, or all but those of `--freeze`."""

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase

from torch import nn

from minitron_cli.errors import MinitronError
from minitron_cli.training.options import Options


def restrict(student: nn.Module, options: Options) -> int:
    """Freeze what the options leave out; returns how many parameters are trained.

    A pattern is a run of whole parts of a parameter's name, in which `*` stands for anything: "mlp.gate" are the
    routers of all layers but not `mlp.gate_proj`, "layers.0" is the first block. Of tied weights either name will do.
    Raises MinitronError where a pattern names nothing, and where nothing is left to train.
    """
    parameters = {name: p for name, p in student.named_parameters(remove_duplicate=False) if p.requires_grad}
    only = _named(parameters, options.train_only, "--train-only") if options.train_only else set(parameters)
    frozen = {id(parameters[name]) for name in _named(parameters, options.freeze, "--freeze")}
    trained = {id(parameters[name]) for name in only} - frozen
    if not trained:
        raise MinitronError("every weight is frozen, nothing is left to train", "freeze less with --freeze")
    for parameter in parameters.values():
        parameter.requires_grad_(id(parameter) in trained)
    return sum(parameter.numel() for parameter in student.parameters() if parameter.requires_grad)


def _named(names: Iterable[str], patterns: Iterable[str], flag: str) -> set[str]:
    found: set[str] = set()
    for pattern in patterns:
        forms = (pattern, f"*.{pattern}", f"{pattern}.*", f"*.{pattern}.*")
        matches = {name for name in names if any(fnmatchcase(name, form) for form in forms)}
        if not matches:
            raise MinitronError(f"{flag} {pattern} names no weight of the student", f"there are {_listed(names)}")
        found |= matches
    return found


def _listed(names: Iterable[str]) -> str:
    """The names without what stands before a layer's number, each once."""
    return ", ".join(dict.fromkeys(re.sub(r"^.*?\.\d+\.", "", name).removesuffix(".weight") for name in names))
