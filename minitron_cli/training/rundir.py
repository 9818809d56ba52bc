"""The output directory of a run: OUT is the finished checkpoint, OUT/run what leads to it.

OUT/config.json, model.safetensors, tokenizer ..., minitron.json     appear at the end, the manifest last
OUT/run/options.json      what was asked for and the inputs' digests: the same line again must match it
OUT/run/metrics.jsonl     one line per logged step
OUT/run/step-NNNNNNN/     the last checkpoints

With --overwrite a run that replaces something is made in OUT.new, and takes OUT's place when it is finished: until then
a line that fails, is stopped or killed has cost nothing, and typed again it goes on in OUT.new.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from minitron_cli.checkpoint.atomic import MANIFEST, atomic_file, replacing
from minitron_cli.checkpoint.disk import held, make_directory
from minitron_cli.checkpoint.provenance import changed_files, read_manifest
from minitron_cli.checkpoint.seal import require_unaltered, sealed
from minitron_cli.errors import MinitronError
from minitron_cli.training.options import IDENTITY, Options, differences, from_json, to_json
from minitron_cli.training.step_files import Damaged, read_state

OPTIONS = "options.json"


def place_of(output: Path, overwrite: bool) -> Path:
    """The directory that a run is made in: `output`, or OUT.new beside it where there is something to replace."""
    if not overwrite or not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return output
    if not is_ours(output):
        raise MinitronError(
            f"{output} was not made by minitron, so --overwrite leaves it alone", "choose another output with -o"
        )
    real = Path(os.path.realpath(output))
    place = real.with_name(real.name + ".new")
    if os.path.lexists(place) and not is_ours(place):
        raise MinitronError(
            f"{place}, where the run would be made that replaces {output}, was not made by minitron",
            "move it away, or choose another output with -o",
        )
    return place


def is_ours(directory: Path) -> bool:
    """Whether a run or another result of minitron is in `directory`."""
    return (directory / MANIFEST).is_file() or (directory / "run" / OPTIONS).is_file()


def changes(place: Path, options: Options, inputs: Mapping[str, str]) -> list[str]:
    """How the run in `place` differs from the one that `options` describe; empty where there is none.

    `options` are those that `prepare` has completed: every "decide for me" has become a number.
    """
    if not (place / "run" / OPTIONS).is_file():
        return []
    before, inputs_before = read(place / "run")
    changed = differences(before, options)
    for name in sorted(inputs_before.keys() | inputs.keys()):
        if inputs_before.get(name) != inputs.get(name):
            changed.append(f"{name}: {_short(inputs_before.get(name))} -> {_short(inputs.get(name))}")
    return changed


def examine(output: Path, options: Options, inputs: Mapping[str, str]) -> bool:
    """Whether the run that `options` describe has been exported to `output`; refuses an output of anything else."""
    if not (output / "run" / OPTIONS).is_file():
        if output.exists() and (not output.is_dir() or any(p.name != "run" for p in output.iterdir())):
            raise MinitronError(f"{output} exists and holds no run of minitron", "choose another output with -o")
        return False
    if changed := changes(output, options, inputs):
        raise MinitronError(
            f"{output} was started with different options: {'; '.join(changed)}",
            "type the line it was started with, choose another output with -o, or add --overwrite to start again",
        )
    return (output / MANIFEST).is_file()


def damage(output: Path) -> list[str]:
    """What is wrong with the finished model in `output`, by the sha256 in its manifest."""
    try:
        listed = (read_manifest(output) or {}).get("files")
    except MinitronError as error:
        return [error.message]
    if not isinstance(listed, dict) or not any(str(name).endswith(".safetensors") for name in listed):
        return [f"{MANIFEST} lists no weights"]
    return changed_files(output, listed)


def create(place: Path, options: Options, inputs: Mapping[str, str], machine: str) -> bool:
    """Write down what the run is; False where an earlier part of it did. `machine` is for readers of speeds."""
    run = place / "run"
    if (run / OPTIONS).is_file():
        return False
    with atomic_file(run / OPTIONS) as file:
        started = {"options": to_json(options), "inputs": dict(inputs), "machine": machine}
        file.write_text(json.dumps(sealed(started), indent=1) + "\n")
    return True


def locked(place: Path) -> AbstractContextManager[None]:
    """Make and hold the run directory in `place`."""
    make_directory(place / "run")
    return held(place / "run", f"another process is training in {place}", "wait until it has ended, or stop it")


def publish(place: Path, output: Path) -> None:
    """Put a finished run that was made in OUT.new in the place of what it replaces."""
    if place != output:
        with replacing(output) as old:
            place.rename(old.path)


def read(run: Path) -> tuple[Options, dict[str, str]]:
    """The options and input digests that a run directory was made with."""
    file = run / OPTIONS
    if not file.is_file():
        raise MinitronError(
            f"{run} is not a run directory: it has no {OPTIONS}", "give the run directory inside a training output"
        )
    try:
        found: dict[str, Any] = json.loads(file.read_text())
        require_unaltered(found, file)
        inputs = {str(name): digest[:] for name, digest in found["inputs"].items()}
        return from_json(found["options"]), inputs
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise MinitronError(f"{file} is damaged: {error}", "start again with --overwrite") from error


def identity(run: Path) -> str | None:
    """A digest of what decides the weights of a run: its options and inputs; None of a directory that has none."""
    file = run / OPTIONS
    if not file.is_file():
        return None
    # As they were written: options that a newer version adds do not make it another run.
    found = json.loads(file.read_text())
    decisive = {name: value for name, value in found["options"].items() if name in IDENTITY}
    return hashlib.sha256(json.dumps([decisive, found["inputs"]], sort_keys=True).encode()).hexdigest()


def require_own(step: Path) -> None:
    """Raise Damaged where a step checkpoint belongs to another run than the directory that it is in.

    Checkpoints of older versions do not say which run they belong to, and pass.
    """
    made_by = read_state(step).get("run")
    if made_by is not None and made_by != identity(step.parent):
        raise Damaged(f"{step} was made by a run of other options or inputs")


def _short(digest: str | None) -> str:
    return "absent" if digest is None else digest[:12] + digest[64:]
