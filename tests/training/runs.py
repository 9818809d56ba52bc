"""Small runs for the trainer's tests: random text, toy models, options that take seconds."""

import json
import os
import random
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from minitron_cli.training.export import Origin, export_dtype, gather, write_model
from minitron_cli.training.load import load_student
from minitron_cli.training.options import Options
from minitron_cli.training.presets import resolve
from minitron_cli.training.recorder import Recorder
from minitron_cli.training.step import kd_step
from tests.wrapped import stored


def write_text(path: Path, documents: int = 120, seed: int = 0) -> Path:
    """A jsonl of words with some structure, so that there is something to learn."""
    rng = random.Random(seed)
    words = ["the cat", " sat on", " a mat", " and then", " it was", " gone.", " Why?", " 1+2=3;"]
    lines = [json.dumps({"text": "".join(rng.choices(words, k=rng.randint(5, 60)))}) for _ in range(documents)]
    path.write_text("\n".join(lines) + "\n")
    return path


def options(student: Path, data: Path, output: Path, teacher: Path | str | None = None, **changes: Any) -> Options:
    """A run of 12 steps of 4 x 32 tokens."""
    given: dict[str, Any] = {
        "verb": "distill" if teacher else "train",
        "student": str(student),
        "data": (str(data),),
        "output": str(output),
        "teacher": (str(teacher),) if teacher else (),
        "steps": 12,
        "batch": 4,
        "micro_batch": 2,
        "seq_len": 32,
        "lr": 1e-3,
        "save_every": 4,
        "device": "cpu",
        **changes,
    }
    return resolve(given, None)


def check_export(source: Path, out: Path) -> None:
    """An untrained student is exported as it was stored, in bfloat16: names, shapes, types and bits."""
    step = kd_step(load_student(source, from_scratch=False, seed=0))
    dtype = export_dtype(source, None)
    assert dtype == torch.bfloat16
    out.mkdir()
    write_model(out, Origin(source, source), gather(step, dtype, keep=True), dtype)
    before, after = stored(source), stored(out)
    assert after.keys() == before.keys()
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
    assert {name: t.dtype for name, t in after.items()} == {name: t.dtype for name, t in before.items()}


@contextmanager
def signal_after(step: int, number: signal.Signals = signal.SIGTERM) -> Iterator[None]:
    """Send this process a real signal as soon as `step` updates are done."""
    original = Recorder.__call__

    def and_kill(self: Recorder, progress: Any, values: Any) -> None:
        original(self, progress, values)
        if progress.step == step:
            os.kill(os.getpid(), number)

    with patch.object(Recorder, "__call__", and_kill):
        yield
