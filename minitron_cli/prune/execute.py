"""Carry out a prune: measure what is not known, plan, write, check."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from minitron_cli.checkpoint.disk import need_space
from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.errors import MinitronError
from minitron_cli.prune.acceptance import check_accepted
from minitron_cli.prune.compensate import Compensation, open_compensation, parse_ridge
from minitron_cli.prune.directions import by_directions
from minitron_cli.prune.expert_refit import ExpertRefit
from minitron_cli.prune.merge import merged, one_of_each_cluster
from minitron_cli.prune.preflight import PruneFacts
from minitron_cli.prune.request import Measurement, PruneRequest, parse_together
from minitron_cli.prune.resolve import ResolvedPrune, resolve, row_length
from minitron_cli.prune.target import make_plan
from minitron_cli.prune.vocabulary import QUIET, Counting, read_vocabulary
from minitron_cli.prune.write import write_pruned
from minitron_cli.spec.plan import Plan


@dataclass(frozen=True, slots=True)
class PruneResult:
    """What was written: the facts of the dry run, the plan that was followed, and the manifest of the output."""

    facts: PruneFacts
    plan: Plan
    manifest: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """The facts as a JSON object, with what the check found and what refitting left."""
        found = {"check": self.manifest["check"], "reconstruction": self.reconstruction}
        return asdict(self.facts) | found | {"expert_refit": self.manifest.get("expert_refit")}

    @property
    def reconstruction(self) -> Mapping[str, Mapping[str, float]]:
        """Errors beside those of plain trimming (see `reconstruction`), empty without compensation."""
        return self.manifest.get("compensation", {}).get("reconstruction", {})


def dry_run(request: PruneRequest, counting: Counting = QUIET) -> ResolvedPrune:
    """Check all that the run checks before it writes; what is not measured yet is named in the result's `missing`."""
    resolved = resolve(request, vocabulary=partial(read_vocabulary, counting=counting))
    check_accepted(resolved.source, resolved.shape)
    need_space(resolved.output, resolved.facts.bytes[1])
    _check_refit(resolved)
    return resolved


def prune(
    request: PruneRequest,
    measure: Callable[[Measurement], object],
    say: Callable[[str], None] = lambda text: None,
    counting: Counting = QUIET,
) -> PruneResult:
    """Write the pruned checkpoint. `measure` makes the scores, where the request gives data and no scores."""
    resolved = resolve(request, vocabulary=partial(read_vocabulary, counting=counting))
    if resolved.missing:
        raise MinitronError(
            resolved.missing, "add --scores FILE (from `minitron importance`), or --data DATA to measure first"
        )
    _check_refit(resolved)
    if resolved.measurement is not None or request.compensates or request.refits:
        check_accepted(resolved.source, resolved.shape)  # else transformers is asked while the tensors are written
    if resolved.measurement is not None:
        say(f"measuring importance first; the scores are kept in {resolved.measurement.output}")
        measure(resolved.measurement)
        counted = resolved.vocabulary
        resolved = resolve(
            replace(request, scores=resolved.measurement.output),
            resolved.source,
            None if counted is None else lambda request, source: counted,
        )
    source, request = resolved.source, resolved.request
    assert isinstance(source, Checkpoint)
    say(f"pruning {source.path} -> {resolved.output}: {resolved.facts.change}")
    compensation = None
    if request.compensates:
        ridge = parse_ridge(request.ridge_of_inputs)
        compensation = open_compensation(request.moments_directory(resolved.output), ridge)
    refit = None
    if resolved.refit is not None:
        rows, identity = _refit_rows(request, source)
        refit = ExpertRefit(parse_together(request.expert_refit), parse_ridge(request.ridge_of_experts), rows, identity)
    plan = _plan(resolved, source, compensation)
    manifest = write_pruned(
        source, plan, resolved.output, scores=resolved.scores, options=_recorded(resolved), overwrite=request.overwrite,
        force=request.force, max_shard_bytes=request.max_shard_size, check=request.check, check_data=request.data,
        compensation=compensation, refit=refit, say=say,
        facts={"respelling": resolved.facts.respelling} if resolved.facts.respelling else None,
    )  # fmt: skip
    return PruneResult(resolved.facts, plan, manifest)


def _check_refit(resolved: ResolvedPrune) -> None:
    """Refuse to refit experts where memory or text does not suffice, before anything is measured."""
    if resolved.refit is not None:
        from minitron_cli.prune.refit_pass import check_memory

        assert isinstance(resolved.source, Checkpoint)
        _refit_rows(resolved.request, resolved.source)
        check_memory(resolved.refit, resolved.shape, parse_together(resolved.request.expert_refit))


def _refit_rows(request: PruneRequest, source: Checkpoint) -> tuple[np.ndarray, dict[str, Any]]:
    from minitron_cli.prune.calibration import text_rows

    return text_rows(source, request.data, request.samples, row_length(request, source))


def _plan(resolved: ResolvedPrune, source: Checkpoint, compensation: Compensation | None) -> Plan:
    """Rank by scores; neurons by reconstruction error and the residual stream by directions, where asked for."""
    request, shape = resolved.request, resolved.shape
    channels = shape.with_alone(hidden=source.shape["hidden"]) if request.rotate else shape
    vocab = None
    if shape["vocab"] != source.shape["vocab"]:
        assert resolved.vocabulary is not None, "a cut of the vocabulary was counted"
        vocab = resolved.vocabulary.kept(shape["vocab"])
    scores = resolved.scores
    if resolved.routing is not None and scores is not None and request.expert_merge == "cluster":
        scores = one_of_each_cluster(scores, resolved.routing, shape["expert"])
    plan = make_plan(source.shape, channels, resolved.target, scores, vocab)
    if resolved.dense:
        plan = replace(plan, dense=True)
    if resolved.routing is not None:
        assert resolved.scores is not None
        plan = merged(plan, resolved.routing, resolved.scores, request.expert_merge)
    if compensation is not None and request.select == "residual":
        from minitron_cli.prune.select import by_residual  # it needs torch; a plain cut does not

        plan = by_residual(source, plan, compensation)
    if compensation is not None and request.rotate:
        plan = by_directions(source, plan, shape["hidden"], compensation)
    return plan


def _recorded(resolved: ResolvedPrune) -> dict[str, Any]:
    """The options that minitron.json names."""
    request, source, shape = resolved.request, resolved.source.shape, resolved.shape
    options: dict[str, Any] = {
        "target": {axis: shape[axis] for axis in shape if shape[axis] != source[axis]},
        "force": request.force,
    }
    if request.merges:
        options |= {"expert-merge": request.expert_merge}
    if request.refits:
        options |= {"expert-refit": request.expert_refit, "ridge": request.ridge_of_experts}
    if resolved.dense:
        options |= {"dense": resolved.facts.model_type[1]}
    if request.compensates:
        options |= {"compensate": request.compensate, "ridge": request.ridge_of_inputs}
        options |= {"select": request.select} if request.select != "scores" else {}
        options |= {"rotate": True} if request.rotate else {}
    if request.text_only:
        options |= {"text_only": True}
    if request.dequantize:
        options |= {"dequantize": True, "dtype": request.dequantized_to}
    if request.keep_pattern:
        options |= {"keep_pattern": True}
    if request.vocab_coverage is not None:
        options |= {"vocab_coverage": request.vocab_coverage}
    return options
