"""The verb: a model and data in, a scores file out; found again, aggregated anew or resumed where that is possible."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from minitron_cli.checkpoint.atomic import check_apart, check_file
from minitron_cli.checkpoint.moments_file import moments_path
from minitron_cli.checkpoint.reader import Checkpoint, open_checkpoint
from minitron_cli.checkpoint.scores_file import read_scores, write_scores
from minitron_cli.data.source import local_paths
from minitron_cli.errors import MinitronError
from minitron_cli.hf.process_group import World, join
from minitron_cli.hf.readers import EXPERT, EXPERT_DAMAGE, EXPERT_ROUTING, ROUTED
from minitron_cli.importance import curves, second_moments, stability
from minitron_cli.importance.aggregate import to_scores
from minitron_cli.importance.baselines import following_scores, magnitude_scores, random_scores, wanda_scores
from minitron_cli.importance.execution import Say, Show
from minitron_cli.importance.identity import differences, require_same, weights_identity
from minitron_cli.importance.options import BY_NORMS, Options
from minitron_cli.importance.snapshot import rows_from_json, rows_to_json
from minitron_cli.importance.sums import COUNT, LAYER, MOMENTS, NORM_RATIO, Rows
from minitron_cli.spec.scores import Scores


@dataclass(frozen=True, slots=True)
class Result:
    """What was made, and how: `made` is "measured", "aggregated" (from sums that were there) or "found"."""

    scores: Scores
    output: Path
    made: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a model: running sums, their rows, depth curves and their metadata."""

    raw: Mapping[str, np.ndarray] = field(default_factory=dict)
    rows: Rows = field(default_factory=dict)
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    depth: Mapping[str, Any] = field(default_factory=dict)


def measure(
    model: str | Path,
    options: Options,
    output: Path,
    say: Say = lambda text: None,
    show: Show = lambda fraction, rate: None,
    judge: curves.Judge | None = None,
) -> Result:
    """Score every axis of `model` and write the scores to `output`; `judge` grades what `--depth-task` names."""
    began = time.monotonic()
    checkpoint = open_checkpoint(model, options.dequantized_to)
    check_request(checkpoint, options, output)
    with join(options.device) as world:
        if world.rank:
            say, show = (lambda text: None), (lambda fraction, rate: None)
        if options.needs_data:
            scores, raw, made = _from_passes(checkpoint, options, output, world, say, show, judge)
        else:
            scores, raw, made = _from_weights(checkpoint, options, output)
        if made != "found" and world.rank == 0:
            write_scores(output, scores, raw)
        world.barrier()  # nobody leaves before the file is there
    return Result(scores, output, made, time.monotonic() - began)


def rehearse(checkpoint: Checkpoint, options: Options, output: Path) -> None:
    """Draw the samples and choose how the pass would run, as `measure` does before it loads the model; where Gram
    matrices are not there yet, they must fit on the disk.
    """
    if options.needs_data:
        from minitron_cli.importance.passes import plan

        with join(options.device) as world:
            plan(checkpoint, options, world)
    if options.second_moments and (options.force or not second_moments.are_there(output)):
        second_moments.need_room(checkpoint, output)


def check_request(checkpoint: Checkpoint, options: Options, output: Path) -> None:
    """Refuse what cannot be measured of this model before anything is: overlaps, sweeps that leave no layer, experts.

    The output is that of the scores, and of the Gram matrices beside them.
    """
    layers = checkpoint.shape["layer"]
    for flag, dropped in (
        ("--depth-greedy", options.depth_greedy),
        *(("--depth-block", n) for n in options.depth_blocks),
    ):
        if dropped >= layers:
            raise MinitronError(f"{flag} {dropped} leaves nothing of {layers} layers", f"use 1 to {layers - 1}")
    if EXPERT not in checkpoint.shape and (options.wants_damage or options.expert_score != "activation"):
        raise MinitronError(
            f"{checkpoint.family.name} models have no experts to score", "leave --expert-score and --expert-damage out"
        )
    if options.wants_damage and checkpoint.family.corrects_choice:
        raise MinitronError(
            "a bias corrects this router's choice of experts: one with a score of nothing may still be chosen, so that "
            "its absence cannot be measured",
            "rank by another --expert-score: frequency, mass, reap or output-norm",
        )
    inputs = [checkpoint.path, *local_paths(options.data)]
    check_file(output, inputs)
    if options.second_moments:
        check_apart(moments_path(output), inputs)


def _from_weights(
    checkpoint: Checkpoint, options: Options, output: Path
) -> tuple[Scores, Mapping[str, np.ndarray], str]:
    """The metrics that need no forward pass."""
    provenance = weights_identity(checkpoint.path, options.metric, options.seed)
    if output.exists() and not options.force:
        stored, raw = read_scores(output)
        require_same(stored.provenance, provenance, output)
        return stored, raw, "found"
    values = random_scores(checkpoint, options.seed) if options.metric == "random" else magnitude_scores(checkpoint)
    return Scores(values, provenance), {}, "measured"


def _from_passes(
    checkpoint: Checkpoint,
    options: Options,
    output: Path,
    world: World,
    say: Say,
    show: Show,
    judge: curves.Judge | None,
) -> tuple[Scores, Mapping[str, np.ndarray], str]:
    """Activation and Wanda scores: what is known is kept, what is missing is measured."""
    from minitron_cli.importance.passes import load, prepare, run_pass

    execution, mode, identity = prepare(checkpoint, options, output, world, say, show)
    known, stored, forced = _known(output, identity, options)
    moments = second_moments.find(output, identity, options.force)
    model = cache(lambda: load(execution, options))
    made = "aggregated"
    if not known.raw or _lacks_sums(known, options) or (options.second_moments and not moments):
        try:
            progress = run_pass(execution, mode, model)
        finally:
            if execution.moments is not None:
                execution.moments.discard()
        known = Known(world.sum_arrays(progress.raw), progress.rows, known.arrays, known.depth)
        made = "measured"
        moments = second_moments.find(output, identity, False) if options.second_moments else {}
    names = curves.missing(options, known.depth, min(options.depth_samples, len(execution.samples)), judge)
    if names:
        new = curves.run(execution, model(), options, names, judge)
        arrays = {curves.PREFIX + name: array for name, (array, _) in new.items()}
        facts = {name: fact for name, (_, fact) in new.items()}
        known = Known(known.raw, known.rows, {**known.arrays, **arrays}, {**known.depth, **facts})
        made = "measured"
    execution.snapshot.remove()
    scores = _scores(checkpoint, options, known, identity, forced)
    if moments:
        scores = Scores(scores.values, {**scores.provenance, "second_moments": moments})
    if stored is not None and made == "aggregated" and dict(stored.provenance) == dict(scores.provenance):
        made = "found"
    return scores, {**known.raw, **known.arrays}, made


def _known(output: Path, identity: Mapping[str, Any], options: Options) -> tuple[Known, Scores | None, list[str]]:
    """What an existing output holds; differences that `--force` has overridden are returned to be recorded."""
    if not output.exists():
        return Known(), None, []
    if options.force:
        stored, _ = read_scores(output)
        return Known(), None, differences(stored.provenance, identity)
    stored, found = read_scores(output)
    require_same(stored.provenance, identity, output)
    raw = {name: array for name, array in found.items() if not name.startswith(curves.PREFIX)}
    arrays = {name: array for name, array in found.items() if name.startswith(curves.PREFIX)}
    rows = rows_from_json(stored.provenance["rows"])
    return Known(raw, rows, arrays, stored.provenance.get("depth", {})), stored, []


def _lacks_sums(known: Known, options: Options) -> bool:
    """Whether the sums that are there were taken without some that are asked for."""
    wanted = {
        NORM_RATIO: options.layer_score == BY_NORMS,
        EXPERT_ROUTING: EXPERT in known.raw and options.expert_score != "activation",
        EXPERT_DAMAGE: EXPERT in known.raw and options.wants_damage,
    }
    return any(asked and name not in known.raw for name, asked in wanted.items())


def unrouted(raw: Mapping[str, np.ndarray], rows: Rows) -> dict[str, list[int]]:
    """Experts that no token of the calibration data was routed to, by layer."""
    if EXPERT_ROUTING not in raw:
        return {}
    tokens = raw[EXPERT_ROUTING][:, 0, ROUTED.index("tokens")].sum(0)
    return {
        str(row.layer): np.flatnonzero(mine == 0).tolist()
        for row, mine in zip(rows[EXPERT_ROUTING], tokens)
        if not mine.all()
    }


def _scores(
    checkpoint: Checkpoint, options: Options, known: Known, identity: Mapping[str, Any], forced: list[str]
) -> Scores:
    how, family, shape = options.aggregation, checkpoint.family, checkpoint.shape
    values = to_scores(known.raw, known.rows, family, shape, how) | following_scores(checkpoint)
    if options.metric == "wanda":
        values |= wanda_scores(checkpoint, known.raw, known.rows, how)
    if options.layer_score == BY_NORMS:
        values[LAYER] = known.raw[NORM_RATIO].sum(0)[MOMENTS.index("sum")] / known.raw[COUNT].sum()
    elif options.layer_score != "influence":
        values[LAYER] = curves.layer_scores(known.arrays, known.depth, options.layer_score)
    provenance = {
        **identity,
        "metric": options.metric,
        "aggregation": {"batch": how.batch, "seq": how.seq},
        "layer_score": options.layer_score,
        **({"expert_score": options.expert_score} if EXPERT in shape else {}),
        **({"unrouted": lost} if (lost := unrouted(known.raw, known.rows)) else {}),
        "rows": rows_to_json(known.rows),
        "depth": dict(known.depth),
        "stability": stability.report(known.raw, known.rows, family, shape, how),
        "samples_seen": int(known.raw[COUNT].sum()),
        **({"forced": forced} if forced else {}),
    }
    return Scores(values, json.loads(json.dumps(provenance)))  # as it is read again, so that the two can be compared
