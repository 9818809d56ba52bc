"""Models larger than memory, a decoder block at a time: loads the blocks in turn, and keeps the states between them.

All samples go through one block; their hidden states wait for the next, in memory or mapped from two files on disk, of
which one holds what went into a layer and the other what comes out.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minitron_cli.checkpoint.disk import need_space
from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.hf.block import Block, build_block, read_layer
from minitron_cli.hf.hooks import block_output
from minitron_cli.hf.memory import give_back
from minitron_cli.hf.samples import Batch, forward


class States:
    """Hidden states of samples, (sample, token, hidden): what went into the current layer, and where its output goes.

    `folder` holds them on disk (None: in memory); `first` is the number of the first sample.
    """

    def __init__(
        self, shape: tuple[int, int, int], dtype: torch.dtype, folder: Path | None = None, first: int = 0
    ) -> None:
        self._first, self._shape, self._dtype, self._folder = first, shape, dtype, folder
        if folder is not None and not folder.exists():  # a mapped file that finds the disk full kills the process
            need_space(folder, 2 * prod(shape) * dtype.itemsize)
        self._memory = None if folder is not None else torch.empty(shape, dtype=dtype)

    def at(self, layer: int) -> Tensor:
        """The hidden states that enter `layer`: (sample, token, hidden). In memory all layers share one place."""
        if self._memory is not None:
            return self._memory
        assert self._folder is not None
        self._folder.mkdir(parents=True, exist_ok=True)
        file = self._folder / f"states-{layer % 2}"
        return torch.from_file(str(file), shared=True, size=prod(self._shape), dtype=self._dtype).view(self._shape)

    def rows(self, batch: Batch) -> slice:
        """Where a batch is in them."""
        first = batch.first - self._first
        return slice(first, first + len(batch.ids))


def blocks(checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device, first: int = 0) -> Iterator[Block]:
    """Every block from `first` on; the tensors of the next are read while the current one is at work."""
    num_layers = checkpoint.shape["layer"]
    with ThreadPoolExecutor(1) as pool:
        # Only reading is done ahead: building a model changes torch's default dtype for the whole process.
        coming = pool.submit(read_layer, checkpoint, first, vocab=first == 0)
        for layer in range(first, num_layers):
            block = build_block(checkpoint, coming.result(), dtype, device)
            if layer + 1 < num_layers:
                coming = pool.submit(read_layer, checkpoint, layer + 1, vocab=False)
            give_back()
            yield block
            del block  # before the next is built; whoever was given it lets go of it too
            give_back()


def step(block: Block, batch: Batch, given: Tensor | None) -> Tensor:
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
