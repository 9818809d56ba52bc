"""Writing the checkpoints of a run: between two steps, or by a thread while steps go on, from a copy in host memory."""

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor, nn

from minitron_cli.hf.process_group import World
from minitron_cli.training import state
from minitron_cli.training.state import Offer, Progress, offer_nobody


class Saver:
    """Saves the steps of `run`, one at a time. Where it `copies`, the next steps go on while one is written.

    The ranks' threads have a process group of their own, so that their exchanges never mix with those of a step. An
    error in a thread is raised by `raise_failure` or `wait`.
    """

    def __init__(
        self, run: Path, step: nn.Module, optimizer: torch.optim.Optimizer, world: World, keep: int, copies: bool,
        offer: Offer = offer_nobody,
    ) -> None:  # fmt: skip
        self._run, self._step, self._optimizer, self._world, self._keep = run, step, optimizer, world, keep
        self._offer = offer
        self._copies: dict[str, Tensor] | None = {} if copies else None
        self._thread = ThreadPoolExecutor(1, "minitron-save") if copies else None
        self._apart = world.apart() if copies else world
        self._writing: Future[Path] | None = None

    def save(self, progress: Progress) -> None:
        """Write a checkpoint, or begin to once the one before is written (a collective)."""
        self.wait()
        draft = state.draft(self._run, self._step, self._optimizer, progress, self._world, self._copies)
        if self._thread is None:
            state.write(draft, self._world, self._keep, self._offer)
        else:
            self._writing = self._thread.submit(state.write, draft, self._apart, self._keep, self._offer)

    def raise_failure(self) -> None:
        """Raise the error of the checkpoint that was being written, if it has failed."""
        if self._writing is not None and self._writing.done():
            self.wait()

    def wait(self) -> None:
        """Wait until nothing is being written."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def close(self) -> None:
        """End the thread once it has written what it is writing."""
        if self._thread is not None:
            self._thread.shutdown()
