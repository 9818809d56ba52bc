"""Models larger than memory: one block is loaded, all samples go through it, their hidden states wait for the next.

The weights are read once, and what is held is one block (two while the next is read ahead), one batch, and the hidden
states of all samples: in memory, or mapped from two files on disk, of which one holds what went into a layer and the
other what comes out. A run that was killed goes on at the layer it was in.
"""

import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minitron_cli.checkpoint.disk import need_space
from minitron_cli.hf.hooks import block_output
from minitron_cli.hf.memory import give_back
from minitron_cli.importance.block import Block, build_block, read_layer
from minitron_cli.importance.execution import Execution
from minitron_cli.importance.forward import forward
from minitron_cli.importance.recorder import Recorder, check_finite, recording
from minitron_cli.importance.snapshot import Progress
from minitron_cli.importance.statistics import Batch


class States:
    """Hidden states of this process's samples: what went into the current layer, and where its output goes."""

    def __init__(self, execution: Execution, on_disk: bool) -> None:
        begin, end = execution.share
        self._begin = begin
        self._shape = (end - begin, execution.samples.rows.shape[1], execution.checkpoint.shape["hidden"])
        self._dtype, self._folder = execution.dtype, execution.scratch if on_disk else None
        if on_disk and not self._folder_exists():  # a mapped file that finds the disk full kills the process
            need_space(execution.scratch, 2 * prod(self._shape) * self._dtype.itemsize)
        self._memory = None if on_disk else torch.empty(self._shape, dtype=self._dtype)

    def _folder_exists(self) -> bool:
        return self._folder is not None and self._folder.exists()

    def at(self, layer: int) -> Tensor:
        """The hidden states that enter `layer`: (sample, token, hidden). In memory all layers share one place."""
        if self._memory is not None:
            return self._memory
        assert self._folder is not None
        self._folder.mkdir(parents=True, exist_ok=True)
        file = self._folder / f"states-{layer % 2}"
        return torch.from_file(str(file), shared=True, size=prod(self._shape), dtype=self._dtype).view(self._shape)

    def rows(self, batch: Batch) -> slice:
        first = batch.first - self._begin
        return slice(first, first + len(batch.ids))


def run(execution: Execution, on_disk: bool) -> Progress:
    """Send this process's share of the samples through the model, layer by layer."""
    num_layers = execution.checkpoint.shape["layer"]
    # The moments of layers that are done would have to be trusted to be there still: such a run starts again.
    resumable = on_disk and execution.moments is None
    states, earlier = States(execution, on_disk), execution.snapshot.load() if resumable else None
    rows = earlier.rows if earlier else None
    recorder, first = Recorder(rows=rows, moments=execution.moments, damage=execution.damage), 0
    if earlier is not None:
        recorder.restore(earlier.raw)
        first = earlier.done
        execution.say(f"going on at layer {first} of an interrupted run")
    for block in _blocks(execution, first):
        recorder.register(block.sites)
        _through(execution, block, recorder, states)
        done = block.layer + 1
        raw = recorder.raw()
        check_finite(raw, recorder.rows)
        if execution.moments is not None:
            execution.moments.close(block.layer)
        if resumable and done < num_layers:
            execution.snapshot.save(Progress(raw, recorder.rows, done))
        del block
    if execution.moments is not None:
        execution.moments.finish()
    if on_disk:
        shutil.rmtree(execution.scratch, ignore_errors=True)
    return Progress(recorder.raw(), recorder.rows, num_layers)


def _blocks(execution: Execution, first: int) -> Iterator[Block]:
    """Every block from `first` on; the tensors of the next are read while the current one is at work."""
    num_layers = execution.checkpoint.shape["layer"]
    with ThreadPoolExecutor(1) as pool:
        # Only reading is done ahead: building a model changes torch's default dtype for the whole process.
        coming = pool.submit(read_layer, execution.checkpoint, first, vocab=first == 0)
        for layer in range(first, num_layers):
            block = build_block(execution.checkpoint, coming.result(), execution.dtype, execution.device)
            if layer + 1 < num_layers:
                coming = pool.submit(read_layer, execution.checkpoint, layer + 1, vocab=False)
            give_back()
            yield block
            del block  # before the next is built; whoever was given it lets go of it too
            give_back()


def _through(execution: Execution, block: Block, recorder: Recorder, states: States) -> None:
    """All samples through one block: states in, statistics and states out."""
    names = {id(module): name for name, module in block.model.named_modules()}
    begin, end = execution.share
    began, num_layers = time.monotonic(), execution.checkpoint.shape["layer"]
    before, after = states.at(block.layer), states.at(block.layer + 1)
    blocks = {block.layer: names[id(block.module)]}
    with recording(block.model, recorder, block.sites, blocks), torch.inference_mode():
        for batch in execution.samples.batches(execution.batch_size, execution.device, begin, end):
            recorder.start(batch, first=block.layer == 0)
            rows = states.rows(batch)
            given = None if block.layer == 0 else before[rows].to(execution.device)
            after[rows] = _step(block, batch, given).to(after.device)
            done = (batch.first + len(batch.ids) - begin) / (end - begin)
            rate = (batch.first + len(batch.ids) - begin) * batch.ids.shape[1] / max(time.monotonic() - began, 1e-9)
            execution.show((block.layer + done) / num_layers, rate / num_layers)


def _step(block: Block, batch: Batch, given: Tensor | None) -> Tensor:
    """One batch through the block: (batch, token, hidden). Without `given` states the batch's ids are embedded."""
    found: list[Tensor] = []
    with _hooks(block, given, found):
        forward(block.decoder, batch, given)
    return found[0]


@contextmanager
def _hooks(block: Block, given: Tensor | None, found: list[Tensor]) -> Iterator[None]:
    """Put `given` in the place of what the embedding stage made (some families scale it), and catch the output."""

    def enter(module: Any, args: Any, kwargs: Any) -> Any:
        if given is None:
            return None
        return ((given, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": given})

    handles = [
        block.module.register_forward_pre_hook(enter, with_kwargs=True),
        block.module.register_forward_hook(lambda module, args, output: found.append(block_output(output))),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def scratch_of(output: Path, rank: int) -> Path:
    """Where the hidden states of a streamed run are kept: beside its output."""
    return output.with_name(f".{output.name}.states-{rank}")
