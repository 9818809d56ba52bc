"""The verb: a model and data in, a scores file out; found again, re-aggregated or resumed where that is possible."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minitron_cli.checkpoint.reader import Checkpoint, open_checkpoint
from minitron_cli.checkpoint.scores_file import read_scores, write_scores
from minitron_cli.importance.aggregate import to_scores
from minitron_cli.importance.identity import pass_identity, require_same
from minitron_cli.importance.options import Options
from minitron_cli.spec.scores import Scores

SNAPSHOT_SECONDS = 60.0
Say = Callable[[str], None]
Show = Callable[[int, int, float], None]  # samples done, of how many, tokens per second


@dataclass(frozen=True, slots=True)
class Result:
    """What was made, and how: `made` is "measured", "resumed", "re-aggregated" or "found"."""

    scores: Scores
    output: Path
    made: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Pass:
    """The outcome of the forward passes: running sums, the layer of each of their rows, and their identity."""

    raw: Mapping[str, np.ndarray]
    rows: Mapping[str, list[int]]
    identity: Mapping[str, Any]


def measure(
    model: str | Path,
    options: Options,
    output: Path,
    say: Say = lambda text: None,
    show: Show = lambda done, total, rate: None,
) -> Result:
    """Score every axis of `model` and write the scores to `output`."""
    began = time.monotonic()
    checkpoint = open_checkpoint(model)
    done, made = _pass(checkpoint, options, output, say, show)
    values = to_scores(done.raw, done.rows, checkpoint.family, checkpoint.shape, options.aggregation)
    provenance = {
        **done.identity,
        "rows": dict(done.rows),
        "metric": options.metric,
        "aggregation": {"batch": options.batch_agg, "seq": options.seq_agg},
    }
    scores = Scores(values, provenance)
    if made != "found":
        write_scores(output, scores, done.raw)
    return Result(scores, output, made, time.monotonic() - began)


def _pass(checkpoint: Checkpoint, options: Options, output: Path, say: Say, show: Show) -> tuple[Pass, str]:
    """Find, resume or make the forward passes."""
    from minitron_cli.importance.load import choose_device, choose_dtype
    from minitron_cli.importance.samples import draw

    device = choose_device(options.device)
    dtype = choose_dtype(options.dtype, device)
    samples, data = draw(checkpoint, options)
    identity = pass_identity(checkpoint.path, data, dtype)
    if output.exists() and not options.force:
        stored, raw = read_scores(output)
        require_same(stored.provenance, identity, output)
        asked = {"metric": options.metric, "aggregation": {"batch": options.batch_agg, "seq": options.seq_agg}}
        same = all(stored.provenance.get(key) == value for key, value in asked.items())
        rows = stored.provenance["rows"]
        return Pass(raw, rows, identity), "found" if same else "re-aggregated"
    raw, rows = _resident(checkpoint, options, samples, device, dtype, say, show)
    return Pass(raw, rows, identity), "measured"


def _resident(
    checkpoint: Checkpoint, options: Options, samples: Any, device: Any, dtype: str, say: Say, show: Show
) -> tuple[dict[str, np.ndarray], dict[str, list[int]]]:
    from minitron_cli.importance import estimate
    from minitron_cli.importance.load import load_model
    from minitron_cli.importance.record import Recorder, check_finite
    from minitron_cli.importance.sites import find_sites

    size = options.batch_size or max(1, 4096 // samples.rows.shape[1])
    say(
        f"measuring {checkpoint.path} on {device} in {dtype}: {len(samples):,} samples, "
        f"{samples.num_tokens:,} tokens, batches of {size}"
    )
    model = load_model(checkpoint.path, dtype, device)
    sites = find_sites(checkpoint, model)
    recorder = Recorder(sites)
    began = time.monotonic()

    def after(batch: Any) -> None:
        done = batch.first + len(batch.ids)
        rate = done * samples.rows.shape[1] / max(time.monotonic() - began, 1e-9)
        show(done, len(samples), rate)

    estimate.run(model, sites, samples.batches(size, device), recorder, after)
    raw = recorder.raw()
    check_finite(raw, recorder.rows)
    return raw, recorder.rows
