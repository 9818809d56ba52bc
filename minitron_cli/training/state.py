"""Checkpoints of a run: model, optimizer and progress, written under a temporary name and renamed.

There is no sampler state (rows are a function of the step) and no generator state (every step seeds its own, see
`seed_step`), so a checkpoint is tensors and one small JSON file. Tensors go through torch.distributed.checkpoint: a
sharded tensor is stored by its global shape and loads on any number of processes.
"""

import json
import os
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException

from minitron_cli.checkpoint.disk import need_space, write_errors
from minitron_cli.errors import MinitronError
from minitron_cli.training.distributed import World, barrier

_NAME = re.compile(r"^step-(\d{7,})$")
_STATE = "state.json"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is: finished updates, tokens read, model FLOPs, seconds of training.

    `first` and `last` are the loss terms of the first and the latest step, `norms` the accepted gradient norms that the
    spike guard compares with, newest last; `skipped` counts the updates that it left out,
    `skipped_in_a_row` those since the last good one.
    """

    step: int = 0
    tokens: int = 0
    flops: float = 0.0
    seconds: float = 0.0
    first: dict[str, float] | None = None
    last: dict[str, float] | None = None
    norms: tuple[float, ...] = ()
    skipped: int = 0
    skipped_in_a_row: int = 0


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed torch for one step on one rank: dropout, where a model has any, repeats after a resume."""
    torch.manual_seed(((seed * 1_000_003 + step) * 65_537 + rank) % (1 << 64))


def prime(optimizer: torch.optim.Optimizer) -> None:
    """Create AdamW's state before the first step, so that a checkpoint can load into it."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            if not optimizer.state[p]:
                optimizer.state[p] = {
                    "step": torch.zeros((), device=p.device if group["fused"] else "cpu"),
                    "exp_avg": torch.zeros_like(p),
                    "exp_avg_sq": torch.zeros_like(p),
                }


def model_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Each parameter once, by its first name, and every persistent buffer."""
    every_name = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    buffers = {name: t for name, t in module.state_dict().items() if name not in every_name}
    return {name: p.detach() for name, p in module.named_parameters()} | buffers


def tensors(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The tensors that a checkpoint holds, by name: the model's and the optimizer's."""
    found = {f"model.{name}": t for name, t in model_tensors(module).items()}
    for name, p in module.named_parameters():
        found |= {f"optimizer.{key}.{name}": value for key, value in optimizer.state[p].items()}
    return found


def save(
    run: Path, module: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress, world: World, keep: int
) -> Path:
    """Write `run/step-NNNNNNN` (a collective: every rank calls it) and drop all but the last `keep`."""
    final = run / f"step-{progress.step:07d}"
    if final.exists():
        return final
    temporary = run / f".{final.name}.tmp"
    contents = tensors(module, optimizer)
    if world.rank == 0:
        shutil.rmtree(temporary, ignore_errors=True)
        need_space(final, sum(t.numel() * t.element_size() for t in contents.values()))
        temporary.mkdir(parents=True)
    barrier(world)
    _write(contents, temporary, world)
    if world.rank == 0:
        (temporary / _STATE).write_text(json.dumps(asdict(progress)))
        _sync(temporary / _STATE)
        os.rename(temporary, final)
        _sync(run)
        for old in checkpoints(run)[:-keep]:
            shutil.rmtree(old)
    barrier(world)
    return final


def _write(contents: dict[str, Tensor], directory: Path, world: World) -> None:
    """Write the tensors; a disk that fills up meanwhile is the user's to know, and leaves nothing behind."""
    try:
        with _quietly():
            dcp.save(contents, storage_writer=dcp.FileSystemWriter(directory), no_dist=world.size == 1)
    except CheckpointException as failure:
        shutil.rmtree(directory, ignore_errors=True)
        errors = [error for error, _ in failure.failures.values()]
        with write_errors(directory):
            for error in errors:
                if isinstance(error, OSError):
                    raise error from failure
        raise


def load(path: Path, module: nn.Module, optimizer: torch.optim.Optimizer, world: World) -> Progress:
    """Fill the model and a primed optimizer in place from a checkpoint, on any number of processes."""
    contents = tensors(module, optimizer)
    check_names(path, contents)
    with _quietly():
        dcp.load(contents, storage_reader=dcp.FileSystemReader(path), no_dist=world.size == 1)
    return read_progress(path)


def check_names(path: Path, contents: dict[str, Tensor]) -> None:
    """Refuse a checkpoint of another model: names and global shapes must be the same."""
    stored = stored_names(path)
    sizes = {name: tuple(getattr(meta, "size", ())) for name, meta in stored.items()}
    wanted = {name: tuple(t.shape) for name, t in contents.items()}
    wrong = sorted(name for name in sizes.keys() | wanted.keys() if sizes.get(name) != wanted.get(name))
    if wrong:
        shown = ", ".join(f"{n}: {sizes.get(n, 'absent')} stored, {wanted.get(n, 'absent')} here" for n in wrong[:4])
        raise MinitronError(
            f"{path} is a checkpoint of another model ({len(wrong)} tensors differ: {shown})",
            "resume with the student and the losses that the run was started with",
        )


def stored_names(path: Path) -> dict[str, Any]:
    """Name -> metadata (size, type) of the tensors of a checkpoint."""
    return dict(dcp.FileSystemReader(path).read_metadata().state_dict_metadata)


def load_weights(path: Path, names: list[str]) -> dict[str, Tensor]:
    """Read some of a checkpoint's tensors whole, on the CPU, without a model: `names` as `tensors` gives them."""
    stored = stored_names(path)
    contents: dict[str, Any] = {n: torch.empty(stored[n].size, dtype=stored[n].properties.dtype) for n in names}
    with _quietly():
        dcp.load(contents, storage_reader=dcp.FileSystemReader(path), no_dist=True)
    return contents


def read_progress(path: Path) -> Progress:
    """The progress at a checkpoint."""
    values = json.loads((path / _STATE).read_text())
    return Progress(**{**values, "norms": tuple(values["norms"])})


def checkpoints(run: Path) -> list[Path]:
    """Finished checkpoints of a run directory, oldest first."""
    found = [(int(m.group(1)), p) for p in run.glob("step-*") if (m := _NAME.match(p.name))]
    return [p for _, p in sorted(found)]


def find(run: Path, step: int) -> Path:
    """The checkpoint after `step` updates, or an error that lists what there is."""
    by_step = {int(p.name.removeprefix("step-")): p for p in checkpoints(run)}
    if step not in by_step:
        have = ", ".join(map(str, by_step)) or "none"
        raise MinitronError(
            f"{run} holds no checkpoint of step {step} (saved: {have})",
            "keep more of them with --save-every and --keep",
        )
    return by_step[step]


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the warning that a single process is a single process."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
        yield


def _sync(path: Path) -> None:
    """Flush a file or a directory's entries to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
