"""The whole model on one device (or placed by accelerate): the fast path."""

import time
from typing import Any

from minitron_cli.hf.hooks import find_sites
from minitron_cli.hf.samples import Batch
from minitron_cli.importance import forward
from minitron_cli.importance.execution import Execution
from minitron_cli.importance.recorder import Recorder, check_finite
from minitron_cli.importance.snapshot import SECONDS, Progress


def run(execution: Execution, model: Any) -> Progress:
    """Send this process's share of the samples through `model`, going on where an interrupted run stopped."""
    sites = find_sites(execution.checkpoint, model, execution.device)
    recorder = Recorder(sites, moments=execution.moments, damage=execution.damage)
    begin, end = execution.share
    earlier = execution.snapshot.load() if execution.moments is None else None  # moments are too large for snapshots
    if earlier is not None:
        recorder.restore(earlier.raw)
        begin += earlier.done
        execution.say(f"going on after sample {begin:,} of an interrupted run")
    clock = _Clock(execution, recorder, begin)
    batches = execution.samples.batches(execution.batch_size, execution.device, begin, end)
    forward.run(model, sites, batches, recorder, clock.after)
    raw = recorder.raw()
    check_finite(raw, recorder.rows)
    if execution.moments is not None:
        execution.moments.finish()
    return Progress(raw, recorder.rows, end - execution.share[0])


class _Clock:
    """Called after each batch: shows the rate, and saves the progress once a minute."""

    def __init__(self, execution: Execution, recorder: Recorder, begin: int) -> None:
        self._execution, self._recorder, self._begin = execution, recorder, begin
        self._began = self._saved = time.monotonic()

    def after(self, batch: Batch) -> None:
        first, end = self._execution.share
        done = batch.first + len(batch.ids)
        now = time.monotonic()
        tokens = (done - self._begin) * batch.ids.shape[1]
        self._execution.show((done - first) / (end - first), tokens / max(now - self._began, 1e-9))
        if now - self._saved >= SECONDS and done < end:
            raw = self._recorder.raw()
            check_finite(raw, self._recorder.rows)
            self._execution.snapshot.save(Progress(raw, self._recorder.rows, done - first))
            self._saved = time.monotonic()
