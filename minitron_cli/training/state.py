"""Checkpoints of a run: model, optimizer and progress, written under a temporary name and renamed.

There is no sampler state (rows are a function of the step) and no generator state (every step seeds its own, see
`seed_step`), so a checkpoint is tensors and one small JSON file; `step_files` says how they are stored.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from minitron_cli.checkpoint.disk import need_space, write_errors
from minitron_cli.errors import MinitronError
from minitron_cli.hf.devices import dtype_name
from minitron_cli.hf.process_group import World, is_first_copy, own_part
from minitron_cli.training.distributed import gather_bytes
from minitron_cli.training.rundir import identity, require_own
from minitron_cli.training.step_files import (
    Damaged,
    Stored,
    open_tensors,
    read_state,
    shard_name,
    write_shard,
    write_state,
)

_NAME = re.compile(r"^step-(\d{7,})$")


# Weights of the data (domain,) by the step that they hold from, ascending.
MixHistory = tuple[tuple[int, tuple[float, ...]], ...]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is: finished updates, tokens read, model FLOPs, seconds of training.

    `first` and `last` are the loss terms of the first and the latest step, `norms` the accepted gradient norms that the
    spike guard compares with, newest last; `skipped` counts the updates that it left out,
    `skipped_in_a_row` those since the last good one. `mix` are the weights that a dynamic mix has computed.
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
    mix: MixHistory = ()


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
    """Write `run/step-NNNNNNN` (a collective: every rank calls it); see `write`."""
    return write(draft(run, module, optimizer, progress, world), world, keep)


@dataclass(frozen=True, slots=True, eq=False)
class Draft:
    """A checkpoint to be written: its place, the global shape of every tensor, and the parts that this rank writes."""

    final: Path
    progress: Progress
    shapes: dict[str, tuple[int, ...]]
    mine: dict[str, Tensor]

    @property
    def temporary(self) -> Path:
        return self.final.with_name(f".{self.final.name}.tmp")


def draft(
    run: Path, module: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress, world: World,
    copies: dict[str, Tensor] | None = None,
) -> Draft:  # fmt: skip
    """Make room for a checkpoint, and collect what it holds (a collective).

    Given `copies`, of this rank's parts in host memory, it holds those, filled anew, and stays as it is while steps go
    on. An empty dictionary gets them; memory that was there before is filled several times faster.
    """
    contents = tensors(module, optimizer)
    parts = {name: own_part(t)[0] for name, t in contents.items() if is_first_copy(t, world)}
    shapes = {name: tuple(t.shape) for name, t in contents.items()}
    found = Draft(place_of(run, progress), progress, shapes, parts)
    if world.rank == 0:
        shutil.rmtree(found.temporary, ignore_errors=True)
        need_space(found.final, sum(t.numel() * t.element_size() for t in contents.values()))
        found.temporary.mkdir(parents=True)
    world.barrier()
    if copies is None:
        return found
    for name, part in parts.items():
        if name not in copies:
            copies[name] = torch.empty_like(part, device="cpu")
        copies[name].copy_(part)
    return replace(found, mine=copies)


# Called with a checkpoint that is whole, before earlier ones go; what it returns stays, whatever its step.
Offer = Callable[[Path], Path | None]


def offer_nobody(step: Path) -> None:
    """The offer of a run whose steps stay where they are."""


def write(draft: Draft, world: World, keep: int, offer: Offer = offer_nobody) -> Path:
    """Write a checkpoint (a collective), under a temporary name until it is whole; see `thin` for what remains."""
    final, temporary = draft.final, draft.temporary
    try:
        with write_errors(final):
            digest = write_shard(temporary / shard_name(world.rank, world.size), draft.mine)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    digests = gather_bytes(world, bytes.fromhex(digest))
    if world.rank == 0:
        run = final.parent
        files = {shard_name(rank, world.size): found.hex() for rank, found in enumerate(digests)}
        write_state(temporary, asdict(draft.progress), draft.shapes, files, identity(run))
        sync_directory(temporary)
        _discard(final)
        os.rename(temporary, final)
        sync_directory(run)
        thin(run, keep, final, offer(final))
    world.barrier()
    return final


def thin(run: Path, keep: int, last: Path, spared: Path | None = None) -> None:
    """Remove all checkpoints but `spared` and the latest `keep` up to `last`: one of a later step is damaged, and the
    run went back to before it."""
    remaining = [p for p in checkpoints(run) if p.name <= last.name][-keep:]
    for old in set(checkpoints(run)) - {*remaining, spared}:
        _discard(old)


def _discard(checkpoint: Path) -> None:
    """Remove a checkpoint, which loses its name first: a process killed meanwhile leaves none that is half there."""
    for left in checkpoint.parent.glob(".step-*.old"):
        shutil.rmtree(left, ignore_errors=True)
    if checkpoint.exists():
        nameless = checkpoint.with_name(f".{checkpoint.name}.old")
        os.rename(checkpoint, nameless)
        shutil.rmtree(nameless)


def load(path: Path, module: nn.Module, optimizer: torch.optim.Optimizer, world: World) -> Progress:
    """Fill the model and a primed optimizer in place from a checkpoint, on any number of processes (a collective).

    Every file is checked against its digest before anything is changed. Raises Damaged where one differs.
    """
    progress, stored = read_progress(path), open_tensors(path, world)
    contents = tensors(module, optimizer)
    check_same_model(path, stored, contents)
    for name, tensor in contents.items():
        part, start = own_part(tensor)
        buffer = (
            part if part.device.type == "cpu" and part.is_contiguous() else torch.empty(part.shape, dtype=part.dtype)
        )
        stored[name].read(start, buffer)
        if buffer is not part:
            part.copy_(buffer)
    return progress


def check_same_model(path: Path, stored: Mapping[str, Stored], contents: Mapping[str, Tensor]) -> None:
    """Refuse a checkpoint of another model: names, global shapes and types must be the same."""
    there = {name: (one.shape, one.dtype) for name, one in stored.items()}
    wanted = {name: (tuple(t.shape), t.dtype) for name, t in contents.items()}
    wrong = sorted(name for name in there.keys() | wanted.keys() if there.get(name) != wanted.get(name))
    if wrong:
        shown = ", ".join(f"{n}: {_shown(there.get(n))} stored, {_shown(wanted.get(n))} here" for n in wrong[:4])
        raise MinitronError(
            f"{path} is a checkpoint of another model ({len(wrong)} tensors differ: {shown})",
            "resume with the student and the losses that the run was started with",
        )


def _shown(found: tuple[tuple[int, ...], torch.dtype] | None) -> str:
    return "absent" if found is None else f"{list(found[0])} {dtype_name(found[1])}"


def load_weights(path: Path, prefix: str) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a checkpoint whose names (see `tensors`) begin with `prefix`: whole, on the CPU, one at a time."""
    for name, stored in open_tensors(path, World()).items():
        if name.startswith(prefix):
            whole = torch.empty(stored.shape, dtype=stored.dtype)
            stored.read(0, whole)
            yield name, whole


def read_progress(path: Path) -> Progress:
    """The progress at a checkpoint. Raises Damaged."""
    content = read_state(path)
    try:
        found = content["progress"]
        mix = tuple((int(step), tuple(map(float, weights))) for step, weights in found.get("mix", ()))
        return Progress(**{**found, "norms": tuple(found["norms"]), "mix": mix})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Damaged(f"{path} is damaged: its progress cannot be read ({error})") from error


def place_of(run: Path, progress: Progress) -> Path:
    """Where a run's checkpoint of this progress lies."""
    return run / f"step-{progress.step:07d}"


def is_step(name: str) -> bool:
    """Whether it is the name of a checkpoint."""
    return _NAME.match(name) is not None


def checkpoints(run: Path) -> list[Path]:
    """Finished checkpoints of a run directory, oldest first."""
    found = [(int(m.group(1)), p) for p in run.glob("step-*") if (m := _NAME.match(p.name))]
    return [p for _, p in sorted(found)]


def load_latest(
    run: Path, module: nn.Module, optimizer: torch.optim.Optimizer, world: World, warn: Callable[[str], None]
) -> Progress | None:
    """Load the latest checkpoint of a run that is whole (a collective); None where the run has none yet."""
    found = checkpoints(run)
    for path in reversed(found):
        try:
            require_own(path)
            return load(path, module, optimizer, world)
        except Damaged as damage:
            warn(f"warning: {damage.message}")
    if found:
        raise MinitronError(
            f"{run} holds no checkpoint of this run that is whole ({', '.join(p.name for p in found)} cannot be used)",
            "start again with --overwrite",
        )
    return None


@contextmanager
def naming_others(path: Path) -> Iterator[None]:
    """Where `path` proves to be damaged, say which other checkpoints its run has."""
    try:
        yield
    except Damaged as damage:
        others = ", ".join(p.name for p in checkpoints(path.parent) if p != path) or "none"
        raise MinitronError(damage.message, f"other checkpoints of that run: {others}") from damage


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


def sync_directory(path: Path) -> None:
    """Flush a directory's entries to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
