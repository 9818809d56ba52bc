"""The whole model on one device (or placed by accelerate): the fast path."""

import time
from typing import Any

from minitron_cli.hf.hooks import find_sites
from minitron_cli.importance import estimate
from minitron_cli.importance.job import Job
from minitron_cli.importance.record import Recorder, check_finite
from minitron_cli.importance.snapshot import SECONDS, Progress
from minitron_cli.importance.statistics import Batch


def run(job: Job, model: Any) -> Progress:
    """Send this process's share of the samples through `model`, going on where an interrupted run stopped."""
    sites = find_sites(job.checkpoint, model, job.device)
    recorder = Recorder(sites, moments=job.moments)
    begin, end = job.share
    earlier = job.snapshot.load() if job.moments is None else None  # moments are too large for snapshots
    if earlier is not None:
        recorder.restore(earlier.raw)
        begin += earlier.done
        job.say(f"going on after sample {begin:,} of an interrupted run")
    clock = _Clock(job, recorder, begin)
    batches = job.samples.batches(job.batch_size, job.device, begin, end)
    estimate.run(model, sites, batches, recorder, clock.after)
    raw = recorder.raw()
    check_finite(raw, recorder.rows)
    if job.moments is not None:
        job.moments.finish()
    return Progress(raw, recorder.rows, end - job.share[0])


class _Clock:
    """Behind each batch: shows the rate, and saves the progress once a minute."""

    def __init__(self, job: Job, recorder: Recorder, begin: int) -> None:
        self._job, self._recorder, self._begin = job, recorder, begin
        self._began = self._saved = time.monotonic()

    def after(self, batch: Batch) -> None:
        first, end = self._job.share
        done = batch.first + len(batch.ids)
        now = time.monotonic()
        tokens = (done - self._begin) * batch.ids.shape[1]
        self._job.show((done - first) / (end - first), tokens / max(now - self._began, 1e-9))
        if now - self._saved >= SECONDS and done < end:
            raw = self._recorder.raw()
            check_finite(raw, self._recorder.rows)
            self._job.snapshot.save(Progress(raw, self._recorder.rows, done - first))
            self._saved = time.monotonic()
