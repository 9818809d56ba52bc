"""Where reference losses come from: measured on a model, or predicted from several sizes of a family."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from minitron_cli.checkpoint.atomic import check_file
from minitron_cli.data.order import require_windows
from minitron_cli.data.source import local_paths
from minitron_cli.data.tokenizer import tokenizer_hash
from minitron_cli.data.tokens import require_ids_below
from minitron_cli.errors import MinitronError
from minitron_cli.hf.devices import choose_device, choose_dtype
from minitron_cli.hf.process_group import World
from minitron_cli.training.defaults import fill_length
from minitron_cli.training.inputs import find_models, open_held_out, student_digest
from minitron_cli.training.load import load_teacher
from minitron_cli.training.optimizer import measurer
from minitron_cli.training.options import Options, check
from minitron_cli.training.preflight import size_of
from minitron_cli.training.reference_file import Domain, References, read_references, write_references
from minitron_cli.training.rows import choose_micro_batch
from minitron_cli.training.scaling import Curve, fit
from minitron_cli.training.step import kd_step
from minitron_cli.training.validation import first_windows, held_out_names, num_windows, token_means

Say = Callable[[str], None]


def measure_source(
    model: str, eval_data: Sequence[str], output: Path, say: Say = lambda text: None, dry_run: bool = False,
    **changes: Any,
) -> References | dict[str, Any]:  # fmt: skip
    """Write the losses of `model` on held-out text, measured as a run would measure its student.

    `changes` are further fields of `training.options.Options`; a dry run makes every check and returns what it found.
    """
    data = tuple(eval_data)
    options = Options("train", model, data, str(output), eval_data=data, batch=1, steps=1, **changes)
    check(options)
    models = find_models(options)
    check_file(output, [models.student, *local_paths(data)])
    options = fill_length(options, [models.student])
    assert options.seq_len is not None
    files = open_held_out(data, models, options)
    require_windows(files, options.seq_len)
    size = size_of(models.student, options.seq_len)
    require_ids_below(files, size.shape["vocab"], models.student)
    names = held_out_names(files)
    windows = [num_windows(file, options) for file in files]
    if dry_run:
        return {"output": str(output), "parameters": size.parameters, "windows": dict(zip(names, windows))}
    device = choose_device(options.device)
    dtype = choose_dtype(options.dtype, device)
    say(f"{model} ({size.parameters:,} parameters) on {sum(windows):,} windows of {options.seq_len:,} tokens, {device}")
    source = load_teacher(models.student, dtype, options.trust_remote_code)
    step = kd_step(source).eval().to(device)
    measure = measurer(step, None)
    micro = options.micro_batch or choose_micro_batch(replace(options, batch=max(windows)), World(0, 1, device))
    domains = []
    for name, file, count in zip(names, files, windows):
        loss = token_means(measure, first_windows(file, options), micro, World(0, 1, device))["ce"]
        say(f"{name}: {loss:.4f} nats per token")
        domains.append(Domain(name, loss, count, file.header.tokens_sha256))
    found = References(
        tuple(domains), tokenizer_hash(models.tokenizer), options.seq_len, options.cross_doc, size.parameters,
        student_digest(models, False),
    )  # fmt: skip
    write_references(output, found)
    return found


def predict(
    measured: Sequence[tuple[int | None, Path]], parameters: int, output: Path, say: Say = lambda text: None,
    *, bounded: bool = True, dry_run: bool = False,
) -> References:  # fmt: skip
    """Write the losses that a model of `parameters` should reach, by a fit to those of at least three sizes.

    `measured` are (parameters, file) of the family; None takes the parameters that the file states.
    """
    check_file(output, [file for _, file in measured])
    found = [read_references(file) for _, file in measured]
    for (_, file), other in zip(measured[1:], found[1:]):
        if differing := [n for n, value in other.conditions().items() if value != found[0].conditions()[n]]:
            raise MinitronError(
                f"{file} and {measured[0][1]} were measured differently: {', '.join(differing)}",
                "measure every size with the same --eval-data, --seq-len and --eval-windows",
            )
    sizes = [size or references.parameters for (size, _), references in zip(measured, found)]
    names = [domain.name for domain in found[0].domains]
    curves = [
        fit(sizes, [references.domains[i].loss for references in found], bounded=bounded) for i in range(len(names))
    ]
    for text in _doubts(sizes, parameters, names, curves):
        say(f"warning: {text}")
    domains = tuple(
        replace(domain, loss=curve(parameters)) for domain, curve in zip(found[0].domains, curves, strict=True)
    )
    predicted = replace(found[0], domains=domains, parameters=parameters, model="")
    if not dry_run:
        write_references(output, predicted, fit=dict(zip(names, map(asdict, curves))), sizes=sizes)
    return predicted


def _doubts(sizes: Sequence[int], parameters: int, names: Sequence[str], curves: Sequence[Curve]) -> list[str]:
    """The reasons to distrust a prediction, in words."""
    found = []
    if not min(sizes) <= parameters <= max(sizes):
        found.append(
            f"{parameters:,} parameters lie outside {min(sizes):,} to {max(sizes):,}: the losses are extrapolated"
        )
    if len(set(sizes)) == 3:
        found.append("three sizes for three unknowns: the curve goes through every point, and nothing tests it")
    for words, chosen in (
        ("E is held at 0 (the fit wanted less)", [c.bound for c in curves]),
        ("E is below 0, which no loss can reach", [c.floor < 0 for c in curves]),
    ):
        if any(chosen):
            found.append(f"{words} for {', '.join(name for name, yes in zip(names, chosen) if yes)}")
    return found
