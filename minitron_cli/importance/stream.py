"""Models larger than memory: one block is loaded, all samples go through it, their hidden states wait for the next.

The weights are read once, and what is held is one block (two while the next is read ahead), one batch, and the hidden
states of all samples. A run that was killed goes on at the layer it was in.
"""

import shutil
import time
from pathlib import Path

import torch

from minitron_cli.hf.block import Block
from minitron_cli.hf.stream import States, blocks, step
from minitron_cli.importance.execution import Execution
from minitron_cli.importance.recorder import Recorder, check_finite, recording
from minitron_cli.importance.snapshot import Progress


def run(execution: Execution, on_disk: bool) -> Progress:
    """Send this process's share of the samples through the model, layer by layer."""
    num_layers = execution.checkpoint.shape["layer"]
    # The moments of layers that are done would have to be trusted to be there still: such a run starts again.
    resumable = on_disk and execution.moments is None
    begin, end = execution.share
    size = (end - begin, execution.samples.rows.shape[1], execution.checkpoint.shape["hidden"])
    states = States(size, execution.dtype, execution.scratch if on_disk else None, begin)
    earlier = execution.snapshot.load() if resumable else None
    rows = earlier.rows if earlier else None
    recorder, first = Recorder(rows=rows, moments=execution.moments, damage=execution.damage), 0
    if earlier is not None:
        recorder.restore(earlier.raw)
        first = earlier.done
        execution.say(f"going on at layer {first} of an interrupted run")
    for block in blocks(execution.checkpoint, execution.dtype, execution.device, first):
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


def _through(execution: Execution, block: Block, recorder: Recorder, states: States) -> None:
    """All samples through one block: states in, statistics and states out."""
    names = {id(module): name for name, module in block.model.named_modules()}
    begin, end = execution.share
    began, num_layers = time.monotonic(), execution.checkpoint.shape["layer"]
    before, after = states.at(block.layer), states.at(block.layer + 1)
    around = {block.layer: names[id(block.module)]}
    with recording(block.model, recorder, block.sites, around), torch.inference_mode():
        for batch in execution.samples.batches(execution.batch_size, execution.device, begin, end):
            recorder.start(batch, first=block.layer == 0)
            rows = states.rows(batch)
            given = None if block.layer == 0 else before[rows].to(execution.device)
            after[rows] = step(block, batch, given).to(after.device)
            done = (batch.first + len(batch.ids) - begin) / (end - begin)
            rate = (batch.first + len(batch.ids) - begin) * batch.ids.shape[1] / max(time.monotonic() - began, 1e-9)
            execution.show((block.layer + done) / num_layers, rate / num_layers)


def scratch_of(output: Path, rank: int) -> Path:
    """Where the hidden states of a streamed run are kept: beside its output."""
    return output.with_name(f".{output.name}.states-{rank}")
