"""The pass that refits experts: source and cut model side by side, a block at a time (see `expert_refit`)."""

import contextlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minitron_cli.checkpoint.reader import Checkpoint, open_checkpoint
from minitron_cli.errors import MinitronError
from minitron_cli.hf.block import Block, build_block, read_layer
from minitron_cli.hf.context import batch_size
from minitron_cli.hf.devices import choose_device
from minitron_cli.hf.experts import Part, routed, set_output_weight
from minitron_cli.hf.hooks import Site, replaced
from minitron_cli.hf.memory import free_host_memory, free_memory
from minitron_cli.hf.readers import EXPERT, EXPERT_FFN
from minitron_cli.hf.samples import Batch, Samples
from minitron_cli.hf.stream import States, blocks, step
from minitron_cli.prune.expert_parts import part_of
from minitron_cli.prune.expert_refit import WHAT, ExpertRefit, RefitCost, groups, refitted, solution_bytes
from minitron_cli.prune.expert_sums import Sums
from minitron_cli.prune.reconstruction import Error, Place, summary
from minitron_cli.spec.axes import axes_of
from minitron_cli.spec.counts import bytes_text
from minitron_cli.spec.plan import Plan
from minitron_cli.spec.shape import Shape

_LINEAR = 1e-2  # relative, in float32

# (parts of the experts in their order, states after the block (token, hidden), batch) of one forward pass
Watch = Callable[[list[Part], Tensor, Batch], None]


@dataclass(slots=True)
class _Side:
    """A model on its way through its blocks: the source, or what was cut from it."""

    checkpoint: Checkpoint
    samples: Samples
    device: torch.device
    states: States

    @property
    def middle(self) -> int:
        """The number of the first sample of the second half."""
        return -(-len(self.samples) // 2)

    def batches(self) -> Iterator[Batch]:
        """All samples, each batch in one half."""
        size = batch_size(None, self.samples.rows.shape[1], self.device.type)
        for begin, end in ((0, self.middle), (self.middle, len(self.samples))):
            yield from self.samples.batches(size, self.device, begin, end)

    def step(self, block: Block, batch: Batch) -> Tensor:
        """The states after a block: (batch, token, hidden)."""
        given = self.states.at(block.layer)[self.states.rows(batch)].to(self.device) if block.layer else None
        return step(block, batch, given)

    def through(self, block: Block, watch: Watch | None = None, leave: bool = True) -> None:
        """All samples through a block, a mixture's passes watched; `leave` keeps the states after it for the next."""
        after = self.states.at(block.layer + 1)
        with torch.inference_mode():
            for batch in self.batches():
                parts: list[Part] = []
                with contextlib.nullcontext() if watch is None else experts_in(block, parts.append):
                    out = self.step(block, batch)
                if watch is not None:
                    watch(parts, out.flatten(0, 1), batch)
                if leave:
                    after[self.states.rows(batch)] = out.to(after.device)


@contextmanager
def experts_in(block: Block, record: Callable[[Part], None], scale: float = 1.0) -> Iterator[list[Tensor]]:
    """Record what the experts of a block do, and multiply their output; the list gets it as it was."""
    outputs: list[Tensor] = []
    site = mixture_of(block)
    assert site is not None
    module = block.model.get_submodule(site.module)

    def forward(hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        outputs.append(routed(module, hidden_states, top_k_index, top_k_weights, record))
        return outputs[-1] * scale

    with replaced({module: forward}):
        yield outputs


def mixture_of(block: Block) -> Site | None:
    """Where a block's experts are, None where it has none."""
    return next((site for site in block.sites if site.axis == EXPERT_FFN), None)


@dataclass(slots=True)
class _Mixture:
    """A mixture of the cut model, in its block, and where the source's states after that layer are found."""

    student: _Side
    block: Block
    wanted: Callable[[Batch], Tensor]  # (batch, token, hidden)

    def refit(self, how: ExpertRefit) -> tuple[Error, list[float | None]]:
        """Solve and write one group of experts after the other, then pass on: the error beside that of before, and the
        ridge of each group."""
        shape, gain = self.student.checkpoint.shape, self._gain()
        losses, ridges = [], []
        for experts in groups(shape[EXPERT], how.together):
            sums = Sums.empty(experts, shape[EXPERT_FFN], shape["hidden"], self.student.device)
            losses.append(self._pass(sums))
            change, ridge = sums.solve(how.ridge)
            for expert, one in zip(experts, () if change is None else (change / gain).cpu().numpy()):
                self._change(expert, one)
            ridges.append(ridge)
        losses.append(self._pass(None))
        return Error(losses[-1], losses[0]), ridges

    def _gain(self) -> float:
        """What the mixture's output is multiplied by on its way to the states after the block: they are compared with
        those without it, on one batch."""
        batch = next(self.student.batches())
        with torch.inference_mode():
            with experts_in(self.block, lambda part: None) as outputs:
                whole = self.student.step(self.block, batch)
            with experts_in(self.block, lambda part: None, scale=0.0):
                added = (whole - self.student.step(self.block, batch)).double().flatten()
            output = outputs[0].double().flatten()
            if not output.any():
                return 1.0
            gain = float(added @ output / (output @ output))
            if (added - gain * output).norm() > _LINEAR * added.norm():
                raise MinitronError(
                    "what this model's experts give is changed on its way into the residual stream, other than by a "
                    "factor: least squares cannot refit them",
                    "leave --expert-refit out",
                )
        return gain

    def _pass(self, sums: Sums | None) -> float:
        """All samples through the block: the sum of squares of what the states after it lack. Without `sums` to fill,
        they are what the next block reads."""
        lost = 0.0

        def watch(parts: list[Part], states: Tensor, batch: Batch) -> None:
            nonlocal lost
            missing = self.wanted(batch).to(states.device).flatten(0, 1) - states
            lost += float(missing.double().square().sum())
            if sums is not None:
                sums.add(parts, missing, int(batch.first >= self.student.middle))

        self.student.through(self.block, watch, leave=sums is None)
        return lost

    def _change(self, expert: int, change: np.ndarray) -> None:
        """Add to one expert's projection, on disk and, as it is rounded there, in memory: change (hidden, inner)."""
        checkpoint, site = self.student.checkpoint, mixture_of(self.block)
        assert site is not None
        matches = [checkpoint.matches[name] for name in site.readers]
        (match,) = (m for m in matches if m.expert in (None, expert))
        part = part_of(checkpoint, match, expert)
        turned = axes_of(part.dims[0]) != ("hidden",)
        values = part.values()
        part.write(values + (change.T if turned else change).astype(values.dtype))
        stored = torch.from_numpy(part.values())
        set_output_weight(self.block.model.get_submodule(site.module), expert, stored.T if turned else stored)


def refit_experts(
    source: Checkpoint, directory: Path, plan: Plan, how: ExpertRefit, say: Callable[[str], None]
) -> tuple[dict[str, Any], set[str]]:
    """Refit the experts of the model that `plan` left in `directory`, in place: what minitron.json says of it, and the
    names of the files that changed."""
    device, student = choose_device("auto"), open_checkpoint(directory)
    hidden = {"source": source.shape["hidden"], "cut": student.shape["hidden"]}
    on_disk = 4 * how.rows.size * sum(hidden.values()) > free_host_memory() // 2
    scratch = directory / "states"
    whole, cut = (
        _Side(model, Samples(how.rows), device, States(
            (*how.rows.shape, model.shape["hidden"]), torch.float32, scratch / name if on_disk else None
        ))
        for name, model in (("source", source), ("cut", student))
    )  # fmt: skip
    errors: dict[Place, Error] = {}
    ridges: dict[str, list[float | None]] = {}
    say(f"refitting experts on {how.rows.size:,} tokens, on {device}")
    for block in blocks(source, torch.float32, device):
        whole.through(block)
        layer = plan.target_layer(block.layer)
        if layer is None:
            continue
        own = build_block(student, read_layer(student, layer, vocab=layer == 0), torch.float32, device)
        if mixture_of(own) is None:
            cut.through(own)
            continue
        mixture = _Mixture(cut, own, partial(_wanted, whole.states, block.layer + 1, plan))
        errors[WHAT, layer, None], ridges[str(layer)] = mixture.refit(how)
        kept = all(ridge is None for ridge in ridges[str(layer)])
        left = f"{errors[WHAT, layer, None].ratio:.2f} of the distance to the source's states is left"
        say(f"layer {layer}: {'nothing changes, for no ridge helps on held-out text' if kept else left}")
    shutil.rmtree(scratch, ignore_errors=True)
    files = {student.tensors[m.name].file.name for m in student.matches.values() if refitted(m)}
    said = {
        "together": how.together or "all",
        "ridge": "auto" if how.ridge is None else how.ridge,
        **({"chosen": ridges} if how.ridge is None else {}),
        "data": dict(how.identity),
        "device": device.type,
        "reconstruction": summary(errors),
    }
    return said, files


def _wanted(states: States, layer: int, plan: Plan, batch: Batch) -> Tensor:
    """What the cut leaves of the states that enter a layer of the source: channels, or directions."""
    found = states.at(layer)[states.rows(batch)]
    if plan.basis is not None:
        return found @ torch.from_numpy(plan.basis).to(found)
    return found[..., torch.from_numpy(plan.kept["hidden"])] if "hidden" in plan.kept else found


def check_memory(cost: RefitCost, shape: Shape, together: int | None) -> None:
    """Refuse what does not fit on the device, with the most experts at a time that do."""
    device = choose_device("auto")
    free = free_memory(device)
    if cost.solution + cost.blocks <= free:
        return
    count, inner, hidden = shape[EXPERT], shape[EXPERT_FFN], shape["hidden"]
    fits = [n for n in range(1, together or count) if solution_bytes(n * inner, hidden) + cost.blocks <= free]
    raise MinitronError(
        f"refitting {together or count} experts together takes {bytes_text(cost.solution + cost.blocks)}, and {device} "
        f"has {bytes_text(free)} free",
        f"add --expert-refit {fits[-1]}" if fits else "use a machine with more memory, or leave --expert-refit out",
    )
