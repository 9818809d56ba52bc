"""What a run hands to the exporter: where its config comes from, what its manifest says; and the export of one step."""

from collections.abc import Callable
from pathlib import Path

from minitron_cli.checkpoint.atomic import atomic_dir, check_apart
from minitron_cli.errors import MinitronError
from minitron_cli.training import export, rundir, state
from minitron_cli.training.inputs import Models, find_models, paths_read, student_digest
from minitron_cli.training.options import Options, to_json
from minitron_cli.training.prepare import Prepared
from minitron_cli.training.state import Progress
from minitron_cli.training.step import KDStep


def export_step(options: Options, step: int, *, overwrite: bool = False) -> Path:
    """Export a saved step of the run in `options.output` to a directory beside it."""
    output = Path(options.output)
    run = output / "run"
    settled, inputs = rundir.read(run)
    models = find_models(options)
    if student_digest(models, options.from_scratch) != inputs.get("student"):
        raise MinitronError(
            f"{models.student} is not the model that {run} was started with", "give the student of that run"
        )
    saved = state.find(run, step)
    dtype = export.export_dtype(models.student, options.export_dtype)
    target = output.with_name(f"{output.name}-step-{step}")
    check_apart(target, paths_read(options, models))
    with state.naming_others(saved), atomic_dir(target, overwrite) as directory:
        rundir.require_own(saved)
        tensors = export.from_checkpoint(saved, dtype)
        export.write_model(directory, origin_of(options, models), tensors, dtype)
        export.write_manifest(directory, **manifest(settled, models, state.read_progress(saved), inputs))
    return target


def exporter(
    ready: Prepared, step: KDStep, rank: int, place: Path, inputs: dict[str, str]
) -> Callable[[Progress], None]:
    """A function that writes the student as it is to PLACE/step-N (a collective)."""

    def write(progress: Progress) -> None:
        tensors = export.gather(step, ready.export_dtype, rank == 0)
        if rank == 0:
            with atomic_dir(place / f"step-{progress.step}", overwrite=True) as directory:
                export.write_model(directory, origin_of(ready.options, ready.models), tensors, ready.export_dtype)
                export.write_manifest(directory, **manifest(ready.options, ready.models, progress, inputs))

    return write


def origin_of(options: Options, models: Models) -> export.Origin:
    """Where the exported model's config, tokenizer and generation settings come from."""
    return export.Origin(models.student, models.tokenizer, options.trust_remote_code)


def manifest(options: Options, models: Models, progress: Progress, inputs: dict[str, str]) -> dict:
    """What minitron.json says of a trained model."""
    return {
        "verb": options.verb,
        "options": to_json(options),
        "inputs": inputs,
        "parent": None if options.from_scratch else models.student,
        "training": {
            "steps": progress.step,
            "tokens": progress.tokens,
            "flops": progress.flops,
            "first": progress.first,
            "last": progress.last,
            **({"mix": progress.mix} if progress.mix else {}),
        },
    }
