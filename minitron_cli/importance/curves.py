"""Depth sweeps of a job: run those that are asked for and not yet known, and put them into the scores file.

A curve is the raw array "depth.METRIC.SIZE": the metric itself (not its increase) with layers [i, i + SIZE) dropped,
for every i. "depth.METRIC.greedy" holds the metric after each greedy step. The provenance's "depth" says the rest
under "METRIC.SIZE": the full model's value, tokens, the best candidate, the cost in passes.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from minitron_cli.errors import MinitronError
from minitron_cli.importance import depth
from minitron_cli.importance.job import Job
from minitron_cli.importance.load import block_names
from minitron_cli.importance.options import Options
from minitron_cli.importance.sites import candidates
from minitron_cli.importance.statistics import Batch

PREFIX = "depth."
Known = tuple[dict[str, np.ndarray], dict[str, Any]]


def missing(options: Options, facts: Mapping[str, Any], samples: int) -> list[str]:
    """Names of the sweeps that are asked for and not known on this many samples."""
    names = [f"{metric}.{size}" for metric, size in options.curves]
    names += [f"{options.depth_metric}.greedy"] if options.depth_greedy else []
    return [
        name
        for name in names
        if facts.get(name, {}).get("samples") != samples
        or (name.endswith("greedy") and len(facts[name]["order"]) < options.depth_greedy)
    ]


def run(job: Job, model: Any, options: Options, names: list[str]) -> Known:
    """The sweeps of these names: (raw arrays, facts)."""
    sites = candidates(job.checkpoint, model, range(job.checkpoint.shape["layer"]))
    modules = block_names((site.module, site.layer) for site in sites)
    blocks = [model.get_submodule(modules[layer]) for layer in range(len(modules))]
    samples = min(options.depth_samples, len(job.samples))
    begin, end = job.world.share(samples)
    arrays: dict[str, np.ndarray] = {}
    facts: dict[str, Any] = {}

    def batches() -> Iterator[Batch]:
        return job.samples.batches(job.batch_size, job.device, begin, end)

    for name in names:
        metric, _, kind = name.partition(".")
        common = {"samples": samples}
        if kind == "greedy":
            _check_greedy(options.depth_greedy, len(blocks))
            steps = depth.greedy(model, blocks, batches, options.depth_greedy, metric, total=job.world.total)
            arrays[PREFIX + name] = np.array([step.values[step.best] for step in steps])
            order = [step.candidates[step.best][0] for step in steps]
            facts[name] = common | {"full": steps[0].full, "tokens": steps[0].tokens, "order": order}
            continue
        dropping = depth.contiguous(range(len(blocks)), int(kind))
        cost = depth.cost(dropping, range(len(blocks)))
        job.say(
            f"depth: {len(dropping)} candidates of {kind} layers on {samples:,} samples by {metric}: "
            f"{cost:.1f} passes, {cost / len(dropping):.2f} for each candidate"
        )
        swept = depth.sweep(model, blocks, batches(), dropping, metric, tick=_tick(job, begin, end, len(dropping)),
                            total=job.world.total)  # fmt: skip
        arrays[PREFIX + name] = swept.values
        best = {"layers": list(dropping[swept.best]), "value": float(swept.values[swept.best])}
        facts[name] = common | {"full": swept.full, "tokens": swept.tokens, "best": best, "passes": cost}
    return arrays, facts


def layer_scores(arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any], metric: str) -> np.ndarray:
    """How much dropping each layer hurts: (layer,)."""
    return arrays[f"{PREFIX}{metric}.1"] - facts[f"{metric}.1"]["full"]


def _check_greedy(steps: int, layers: int) -> None:
    if steps >= layers:
        raise MinitronError(f"--depth-greedy {steps} leaves nothing of {layers} layers", f"use 1 to {layers - 1}")


def _tick(job: Job, begin: int, end: int, count: int) -> depth.Tick:
    def tick(batch: Batch, candidate: int) -> None:
        done = batch.first - begin + len(batch.ids) * (candidate + 1) / count
        job.show(done / (end - begin), 0.0)

    return tick
