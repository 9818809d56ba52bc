"""The logits of a served teacher, requested while the previous step is trained."""

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
from torch import Tensor

from minitron_cli.errors import MinitronError
from minitron_cli.training.cached_logits.served import IN_FLIGHT, Served
from minitron_cli.training.cached_logits.store import Taught
from minitron_cli.training.loop import StepRefused
from minitron_cli.training.rows import Rows, Share


class Asker:
    """Requests rows from the server, in order, IN_FLIGHT at a time."""

    def __init__(self, served: Served) -> None:
        self._served = served
        self._pool, self._stopped = ThreadPoolExecutor(IN_FLIGHT), threading.Event()

    def ask(self, ids: Tensor, positions: Tensor | None = None) -> list["Future[bytes]"]:
        """The records of rows (row, token), as futures; documents, which begin at position 0, are read apart."""
        starts: Sequence[np.ndarray] = [np.zeros(1, np.int64)] * len(ids)
        if positions is not None:
            starts = [np.flatnonzero(row == 0) for row in positions.numpy()]
        rows = zip(ids.numpy(), starts)
        return [self._pool.submit(self._served.record, row, at, self._stopped) for row, at in rows]

    def close(self) -> None:
        """Send no more requests, and wait for those in flight."""
        self._stopped.set()
        self._pool.shutdown(cancel_futures=True)


@contextmanager
def asking(served: Served) -> Iterator[Asker]:
    """An asker that is closed when the block ends."""
    asker = Asker(served)
    try:
        yield asker
    finally:
        asker.close()


def taught_by(served: Served, rows: Rows, steps: int, asker: Asker, *, alone: bool) -> Rows:
    """The same rows with the teacher's logits; those of the next step are requested meanwhile.

    At most the rows of two steps are held. A process that trains `alone` saves its weights when the server is lost.
    """
    ahead: dict[int, tuple[Share, list[Future[bytes]]]] = {}

    def ask(step: int) -> tuple[Share, list["Future[bytes]"]]:
        share = rows(step)
        return share, asker.ask(share.ids, share.positions)

    def taught(step: int) -> Share:
        share, records = ahead.pop(step) if step in ahead else ask(step)
        if step + 1 < steps and step + 1 not in ahead:
            ahead[step + 1] = ask(step + 1)
        try:
            found = [record.result() for record in records]
        except MinitronError as error:
            if not alone:
                raise
            raise StepRefused(error.message, f"{error.hint}; the same line goes on from the last step") from error
        return replace(share, taught=Taught(served.layout(share.ids.shape[1]), found, str(served)))

    return taught
