"""The output directory of a run: OUT is the finished checkpoint, OUT/run what leads to it.

OUT/config.json, model.safetensors, tokenizer ..., minitron.json     appear at the end, the manifest last
OUT/run/options.json      what was asked for and the inputs' digests: the same line again must match it
OUT/run/metrics.jsonl     one line per logged step
OUT/run/step-NNNNNNN/     the last checkpoints
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minitron_cli.checkpoint.atomic import MANIFEST, atomic_file
from minitron_cli.errors import MinitronError
from minitron_cli.training.options import Options, differences, from_json, to_json

OPTIONS = "options.json"


def examine(output: Path, options: Options, inputs: Mapping[str, str]) -> bool:
    """Whether the run that `options` describe is finished in `output`; refuses an output that holds anything else.

    `options` are settled: every "decide for me" has become a number. A run of other options is refused by name of each
    difference, a directory that is not ours altogether.
    """
    if not (output / "run" / OPTIONS).is_file():
        if output.exists() and (not output.is_dir() or any(p.name != "run" for p in output.iterdir())):
            raise MinitronError(f"{output} exists and holds no run of minitron", "choose another output with -o")
        return False
    before, inputs_before = read(output / "run")
    changed = differences(before, options)
    for name in sorted(inputs_before.keys() | inputs.keys()):
        if inputs_before.get(name) != inputs.get(name):
            changed.append(f"{name}: {_short(inputs_before.get(name))} -> {_short(inputs.get(name))}")
    if changed:
        raise MinitronError(
            f"{output} holds a run of other options: {'; '.join(changed)}",
            "type the line it was started with, choose another output with -o, or add --overwrite to start again",
        )
    return (output / MANIFEST).is_file()


def create(output: Path, options: Options, inputs: Mapping[str, str]) -> None:
    """Make the run directory, unless an earlier part of the same run did."""
    run = output / "run"
    if (run / OPTIONS).is_file():
        return
    run.mkdir(parents=True, exist_ok=True)
    with atomic_file(run / OPTIONS) as file:
        file.write_text(json.dumps({"options": to_json(options), "inputs": dict(inputs)}, indent=1) + "\n")


def read(run: Path) -> tuple[Options, dict[str, str]]:
    """The options and input digests that a run directory was made with."""
    file = run / OPTIONS
    if not file.is_file():
        raise MinitronError(
            f"{run} is no run directory: it has no {OPTIONS}", "give the run directory inside a training output"
        )
    try:
        found: dict[str, Any] = json.loads(file.read_text())
        return from_json(found["options"]), found["inputs"]
    except (ValueError, KeyError, TypeError) as error:
        raise MinitronError(f"{file} is damaged: {error}", "start again with --overwrite") from error


def remove(output: Path) -> None:
    """Start again: remove an output that is ours, finished or not."""
    if not output.exists() or not any(output.iterdir()):
        return
    if not (output / MANIFEST).is_file() and not (output / "run" / OPTIONS).is_file():
        raise MinitronError(
            f"{output} was not made by minitron, so --overwrite leaves it alone", "choose another output with -o"
        )
    shutil.rmtree(output)


def _short(digest: str | None) -> str:
    return "absent" if digest is None else digest[:12] + digest[64:]
