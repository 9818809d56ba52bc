"""Depth sweeps of an execution: those that are asked for and not yet known are run and kept in the scores file.

A curve is the raw array "depth.METRIC.SIZE": the metric itself (not its increase) with layers [i, i + SIZE) dropped,
for every i. "depth.METRIC.greedy" holds the metric after each greedy step. The provenance's "depth" holds the rest
under "METRIC.SIZE": the full model's value, tokens, the best candidate, the cost in passes. METRIC is loss, kl, mse or
the name of a task, of which more is better.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from minitron_cli.errors import MinitronError
from minitron_cli.hf.hooks import replaced
from minitron_cli.hf.parts import blocks_of
from minitron_cli.hf.samples import Batch
from minitron_cli.importance import depth
from minitron_cli.importance.bypass import answers_with_tuple, without
from minitron_cli.importance.execution import Execution
from minitron_cli.importance.forecast import greedy_passes
from minitron_cli.importance.options import Options

PREFIX = "depth."
Curve = tuple[np.ndarray, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Judge:
    """A downstream task: `score` grades a model in memory, more is better; `identity` changes when the task does."""

    name: str
    identity: str
    score: Callable[[Any, torch.device], float]


def missing(options: Options, facts: Mapping[str, Any], samples: int, judge: Judge | None) -> list[str]:
    """Names of the sweeps that are asked for and not known on this many samples, or of this very task."""
    names = [f"{metric}.{size}" for metric, size in options.curves]
    names += [f"{options.depth_metric}.greedy"] if options.depth_greedy else []
    return [name for name in names if not _is_known(name, facts.get(name, {}), options, samples, judge)]


def _is_known(name: str, fact: Mapping[str, Any], options: Options, samples: int, judge: Judge | None) -> bool:
    metric, _, kind = name.rpartition(".")
    if judge is not None and metric == judge.name:
        return bool(fact.get("task") == judge.identity)
    known = fact.get("samples") == samples
    return known and (kind != "greedy" or len(fact["order"]) >= options.depth_greedy)


def run(execution: Execution, model: Any, options: Options, names: list[str], judge: Judge | None) -> dict[str, Curve]:
    """Run the sweeps of these names: name -> (raw array, its entry in the provenance)."""
    blocks = list(blocks_of(model))
    samples = min(options.depth_samples, len(execution.samples))
    found = {}
    for name in names:
        metric, _, kind = name.rpartition(".")
        if judge is not None and metric == judge.name:
            found[name] = _judged(execution, model, blocks, int(kind), judge)
        elif kind == "greedy":
            found[name] = _greedy(execution, model, blocks, metric, samples, options.depth_greedy)
        else:
            found[name] = _swept(execution, model, blocks, metric, samples, int(kind))
    return found


def _swept(
    execution: Execution, model: Any, blocks: Sequence[nn.Module], metric: str, samples: int, size: int
) -> Curve:
    dropping = depth.contiguous(range(len(blocks)), size)
    cost = depth.cost(dropping, range(len(blocks)))
    execution.say(
        f"depth: {len(dropping)} blocks of {size} on {samples:,} samples by {metric}: "
        f"{cost:.1f} passes, {cost / len(dropping):.2f} for each"
    )
    begin, end = execution.world.share(samples)

    def tick(batch: Batch, candidate: int) -> None:
        done = batch.first - begin + len(batch.ids) * (candidate + 1) / len(dropping)
        execution.show(done / (end - begin), 0.0)

    swept = depth.sweep(
        model, blocks, _batches(execution, samples), dropping, metric, tick=tick, total=execution.world.sum_array
    )
    best = {"layers": list(dropping[swept.best]), "value": float(swept.values[swept.best])}
    fact = {"samples": samples, "full": swept.full, "tokens": swept.tokens, "best": best, "passes": cost}
    return swept.values, fact


def _greedy(
    execution: Execution, model: Any, blocks: Sequence[nn.Module], metric: str, samples: int, steps: int
) -> Curve:
    passes = greedy_passes(len(blocks), steps)
    execution.say(f"depth: {steps} layers one by one on {samples:,} samples by {metric}: {passes:.1f} passes")
    begin, end = execution.world.share(samples)
    whole = (end - begin) * sum(len(blocks) - step for step in range(steps))  # samples x candidates of all sweeps
    done = 0

    def tick(batch: Batch, candidate: int) -> None:
        nonlocal done
        done += len(batch.ids)
        execution.show(done / whole, 0.0)

    sweeps = depth.greedy(
        model, blocks, lambda: _batches(execution, samples), steps, metric, tick, execution.world.sum_array
    )
    order = [sweep.candidates[sweep.best][0] for sweep in sweeps]
    fact = {"samples": samples, "full": sweeps[0].full, "tokens": sweeps[0].tokens, "order": order}
    return np.array([sweep.values[sweep.best] for sweep in sweeps]), fact


def _judged(execution: Execution, model: Any, blocks: Sequence[nn.Module], size: int, judge: Judge) -> Curve:
    """A downstream task without each block of layers (Minitron in practice, arXiv 2408.11796, figures 8 and 9)."""
    if execution.world.size > 1:
        raise MinitronError("--depth-task runs in one process", "leave torchrun out, or measure --depth-metric loss")
    dropping = depth.contiguous(range(len(blocks)), size)
    as_tuple = answers_with_tuple(model, blocks, execution.device)
    execution.say(f"depth: {len(dropping)} blocks of {size} by {judge.name}, one evaluation for each")
    full, values = judge.score(model, execution.device), np.zeros(len(dropping))
    for number, dropped in enumerate(dropping):
        with replaced(without(blocks, dropped, None, as_tuple)):
            values[number] = judge.score(model, execution.device)
        execution.show((number + 1) / len(dropping), 0.0)
    best = int(np.argmax(values))
    fact = {"task": judge.identity, "full": full, "higher_is_better": True}
    return values, fact | {"best": {"layers": list(dropping[best]), "value": float(values[best])}}


def _batches(execution: Execution, samples: int) -> Iterator[Batch]:
    return execution.samples.batches(execution.batch_size, execution.device, *execution.world.share(samples))


def layer_scores(arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any], metric: str) -> np.ndarray:
    """How much dropping each layer hurts: (layer,)."""
    return arrays[f"{PREFIX}{metric}.1"] - facts[f"{metric}.1"]["full"]
