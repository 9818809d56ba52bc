"""A request meets its source: sizes, scores and files are checked, nothing is written, no tensor is read (no torch)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from minitron_cli.checkpoint.architecture import Architecture, architecture_of, stored_weights
from minitron_cli.checkpoint.atomic import check_output
from minitron_cli.checkpoint.hfconfig import dense_config, layer_pattern, layers_stated
from minitron_cli.checkpoint.moments_file import open_moments
from minitron_cli.checkpoint.reader import Checkpoint, open_checkpoint
from minitron_cli.checkpoint.scores_file import read_scores
from minitron_cli.checkpoint.servable import servable_cut
from minitron_cli.data.source import local_paths
from minitron_cli.errors import MinitronError
from minitron_cli.hf.context import CALIBRATION_LENGTH, context_length, sequence_length
from minitron_cli.hf.memory import INTERPRETER_BYTES
from minitron_cli.hf.readers import EXPERT
from minitron_cli.prune.acceptance import check_strides
from minitron_cli.prune.directions import check_rotation
from minitron_cli.prune.expert_refit import RefitCost, refit_cost
from minitron_cli.prune.merge import Routing, read_routing
from minitron_cli.prune.merge_cost import merge_cost
from minitron_cli.prune.preflight import PruneFacts, prune_facts
from minitron_cli.prune.request import Measurement, PruneRequest, parse_together
from minitron_cli.prune.target import (
    Target,
    check_pattern,
    check_something_is_cut,
    default_name,
    kept_layers,
    needed_scores,
    parse_layers,
    pattern_warnings,
    rounded,
    target_for_budget,
    target_shape,
)
from minitron_cli.prune.to_dense import why_sparse
from minitron_cli.prune.vocabulary import Vocabulary, covering_size
from minitron_cli.spec.pattern import Pattern, whole_counts
from minitron_cli.spec.scores import Scores
from minitron_cli.spec.shape import Shape

PARALLEL = 8  # devices that experts are commonly spread over


@dataclass(frozen=True, slots=True)
class ResolvedPrune:
    """A request that fits its source, and all that is known before a tensor is read.

    `needed` are the axes that scores rank, `scores` those read for them. What is not there yet is to be measured first
    (`measurement`), or is `missing`, in words: then the request can be looked at, but not carried out.
    """

    request: PruneRequest
    source: Checkpoint | Architecture
    target: Target
    shape: Shape
    output: Path
    needed: tuple[str, ...]
    scores: Scores | None
    measurement: Measurement | None
    missing: str | None
    facts: PruneFacts
    routing: Routing | None = None  # of the source's experts, where they are merged
    vocabulary: Vocabulary | None = None
    refit: RefitCost | None = None  # of its experts, where they are refitted
    dense: bool = False  # whether the one expert that stays becomes a dense MLP

    @property
    def result(self) -> Architecture:
        """The model that comes out, by its config."""
        source, beside = self.source, self.source.beside if isinstance(self.source, Architecture) else ()
        left = Architecture(source.config, source.family, source.shape, beside).resized(self.shape)
        return architecture_of(dense_config(left.config, left.family), beside) if self.dense else left


def resolve(
    request: PruneRequest,
    source: Checkpoint | Architecture | None = None,
    vocabulary: Callable[[PruneRequest, Checkpoint], Vocabulary] | None = None,
) -> ResolvedPrune:
    """Check a request against its source's config and headers, and against the scores where they exist.

    A config alone (`source`) serves for a model that a recipe has yet to make: then no other file is looked at.
    `vocabulary` counts the corpus where the vocabulary is cut; without it only sizes are checked.
    """
    source = source or _source(request)
    name = source.path.resolve().name if isinstance(source, Checkpoint) else Path(request.model).name
    scores = _read_scores(request, source) if request.params is not None else None
    target = _target(request, source, scores)
    shape = target_shape(source, target)  # what can be refused is refused before a corpus is counted
    pattern = _pattern(request, source, target, shape)
    counted = None
    if request.cuts_vocabulary and vocabulary is not None and isinstance(source, Checkpoint):
        counted = vocabulary(request, source)
    if request.vocab_coverage is not None:
        target = _covering(request, source, target, counted)
        shape = target_shape(source, target)
    dense = request.experts == 1 and not why_sparse(source.family, shape)
    _check_shape(request, source, shape, dense)
    output = request.output or Path(
        default_name(name, source.shape, shape, text_only=request.text_only, dense=dense, dtype=request.dequantized_to)
    )
    if isinstance(source, Checkpoint):
        files = filter(None, (request.scores, request.moments, request.keep_tokens))
        check_output(output, request.overwrite, [source.path, *local_paths(request.data), *files])
    # Directions of the residual stream are not ranked by scores.
    ranked = shape.with_alone(hidden=source.shape["hidden"]) if request.rotate else shape
    needed = tuple(needed_scores(source.shape, ranked, target))
    if needed and scores is None:
        scores = _read_scores(request, source)
    if scores is not None:
        for axis in needed:
            scores.require(axis, source.shape)
    layers, shape = _layers(source, target, shape, scores)
    unranked = needed if scores is None else ()
    measurement = _measurement(request, request.output or Path(name) if request.params else output, unranked)
    missing = "" if measurement is not None else _missing(request, source, output, unranked)
    merges = request.merges and shape["expert"] < source.shape["expert"]
    routing = read_routing(request, source.shape) if merges and scores is not None else None
    facts = _facts(request, source, shape, output, scores, counted, merges, dense)
    refit = _refit(request, source, shape, dense) if request.refits else None
    if refit is not None:
        facts = _with_refit(facts, refit)
    leaves_pattern = () if pattern is None or layers is None else pattern_warnings(pattern, layers)
    servable = servable_cut(source, shape, layers, pattern, dense)
    facts = replace(facts, warnings=(*facts.warnings, *leaves_pattern), servable=servable)
    return ResolvedPrune(
        request, source, target, shape, output, needed, scores, measurement, missing, facts, routing, counted, refit,
        dense,
    )  # fmt: skip


def _pattern(request: PruneRequest, source: Checkpoint | Architecture, target: Target, shape: Shape) -> Pattern | None:
    """The kinds of the source's layers, in order, where layers go; checked against the target with --keep-pattern."""
    if shape["layer"] == source.shape["layer"] or not (request.keep_pattern or isinstance(source, Checkpoint)):
        return None
    pattern = layer_pattern(source.config, source.family, source.shape)
    if request.keep_pattern:
        check_pattern(pattern, target, shape)
    return pattern


def _layers(
    source: Checkpoint | Architecture, target: Target, shape: Shape, scores: Scores | None
) -> tuple[Sequence[int] | None, Shape]:
    """Which layers stay (None: all, or unknown without scores), and the shape, which depends on them."""
    layers = kept_layers(source.shape, shape, target, scores)
    if layers is None:
        return None, shape
    left = shape.of_layers(layers, source.shape)
    if left["layer"] != source.shape["layer"]:
        layers_stated(source.config, source.family, left)  # refused now, not after measuring and writing
    return layers, left


def _check_shape(request: PruneRequest, source: Checkpoint | Architecture, shape: Shape, dense: bool) -> None:
    """Refuse a target that cuts nothing, or that cannot run."""
    if not dense and (not request.changes_uncut or request.sizes):
        check_something_is_cut(source.shape, shape, request.sizes)
    check_strides(source, shape)
    if request.rotate:
        check_rotation(source.family, source.config, shape["hidden"] != source.shape["hidden"])


def _source(request: PruneRequest) -> Checkpoint:
    opened = open_checkpoint(request.model, request.dequantized_to)
    return opened.unwrapped() if request.text_only else opened


def _target(request: PruneRequest, source: Checkpoint | Architecture, scores: Scores | None) -> Target:
    """The sizes that a request names or spends a budget on, as multiples of what it wants."""
    target = Target(request.sizes)
    pattern = layer_pattern(source.config, source.family, source.shape) if request.keep_pattern else ()
    if request.params is not None:
        depths = whole_counts(pattern) if pattern else None
        fixed = rounded(source.shape, target, request.multiple_of).sizes
        target = target_for_budget(source, request.params, request.multiple_of, scores, depths, fixed)
    elif request.drop_layers is not None:
        target = Target(request.sizes, parse_layers(request.drop_layers, source.shape["layer"]))
    if request.experts == 1 and source.family.dense is not None:  # a dense model has no number of experts a token
        target = replace(target, sizes={"expert_active": 1, **target.sizes})
    return rounded(source.shape, replace(target, pattern=pattern), request.multiple_of)


def _covering(
    request: PruneRequest, source: Checkpoint | Architecture, target: Target, counted: Vocabulary | None
) -> Target:
    """The target with the size of vocabulary that --vocab-coverage comes to on the counted corpus."""
    if counted is None:
        raise MinitronError(
            "--vocab-coverage is a size that only counting tells", "give --vocab N where sizes are planned ahead"
        )
    assert request.vocab_coverage is not None
    size = covering_size(counted, request.vocab_coverage, request.multiple_of)
    return rounded(source.shape, replace(target, sizes={**target.sizes, "vocab": size}), request.multiple_of)


def _facts(
    request: PruneRequest,
    source: Checkpoint | Architecture,
    shape: Shape,
    output: Path,
    scores: Scores | None,
    counted: Vocabulary | None,
    merges: bool,
    dense: bool,
) -> PruneFacts:
    """What the cut costs and leaves, with the work of merging experts and the spelling of a cut vocabulary."""
    facts = prune_facts(source, shape, output, request.compensation_options, request.params, dense)
    facts = replace(facts, warnings=(*facts.warnings, *_expert_warnings(request, source, shape, scores)))
    if merges:
        seconds, held = merge_cost(source.shape, shape)
        facts = replace(facts, peak_memory=facts.peak_memory + held, seconds=round(facts.seconds + seconds, 1))
    if counted is not None and shape["vocab"] != source.shape["vocab"]:
        facts = replace(facts, respelling=counted.report(shape["vocab"]))
    return facts


def _refit(request: PruneRequest, source: Checkpoint | Architecture, shape: Shape, dense: bool) -> RefitCost:
    """What refitting experts takes; refused where there are none, or none that a block at a time could run."""
    if EXPERT not in shape or dense:
        why = "--experts 1 leaves a dense model" if dense else f"{source.family.name} models have no experts"
        raise MinitronError(f"{why}: there is nothing for --expert-refit", "leave it out")
    if source.family.whole:
        raise MinitronError(
            f"--expert-refit runs models a layer at a time, which this one cannot be: {source.family.whole}",
            "leave it out",
        )
    together, weights = parse_together(request.expert_refit), tuple(stored_weights(source))
    return refit_cost(weights, source.shape, shape, together, request.samples, row_length(request, source))


def row_length(request: PruneRequest, source: Checkpoint | Architecture) -> int:
    """Tokens per row that experts are refitted to."""
    return sequence_length(request.seq_len, CALIBRATION_LENGTH, {request.model: context_length(source.config)})


def _with_refit(facts: PruneFacts, cost: RefitCost) -> PruneFacts:
    found = facts.warnings
    if cost.tokens < cost.inputs:
        found += (
            f"--expert-refit solves for {cost.inputs:,} inputs at a time on {cost.tokens:,} tokens: fewer experts at a "
            "time, or more --samples, would hold better on other text",
        )
    return replace(
        facts,
        warnings=found,
        peak_memory=max(facts.peak_memory, INTERPRETER_BYTES + cost.memory),
        seconds=round(facts.seconds + cost.seconds, 1),
        compensation_flops=facts.compensation_flops + cost.flops,
    )


def _expert_warnings(
    request: PruneRequest, model: Checkpoint | Architecture, target: Shape, scores: Scores | None
) -> list[str]:
    """Warnings: gates that shrink, experts that calibration never reached, a number that GPUs cannot share."""
    source, num, found = model.shape, target.get("expert"), []
    normalised = model.config.get("norm_topk_prob", model.family.defaults.get("norm_topk_prob", True))
    if request.experts == 1 and (why := why_sparse(model.family, target)):
        found.append(f"--experts 1 leaves a mixture of one expert: {why}")
    if target.get("expert_active") < source.get("expert_active") and not normalised and num > 1:
        found.append(
            f"--experts-per-token {target['expert_active']}: the routing weights of this model do not add up to 1, so "
            "that with fewer experts a token their output shrinks; training makes up for it, trimming does not"
        )
    if num == source.get("expert"):
        return found
    if num % PARALLEL and num > 1 and not source["expert"] % PARALLEL:
        found.append(
            f"--experts {num} is not a multiple of {PARALLEL}: engines that put equally many on each of {PARALLEL} "
            "GPUs (SGLang with DeepEP) cannot share them; vLLM shares them unevenly"
        )
    for layer, lost in (scores.provenance.get("unrouted", {}) if scores else {}).items():
        if source["expert"] - len(lost) < num:
            found.append(
                f"layer {layer}: {num} experts stay, and the calibration data was routed to only "
                f"{source['expert'] - len(lost)}; the others stay by their index"
            )
    if request.compensates and not request.refits:
        found.append(
            "experts that go are not compensated for: least squares refits what reads neurons and channels; "
            "--expert-refit refits the experts that stay"
        )
    return found


def _read_scores(request: PruneRequest, source: Checkpoint | Architecture) -> Scores | None:
    return read_scores(request.scores)[0] if request.scores and isinstance(source, Checkpoint) else None


def _measurement(request: PruneRequest, output: Path, unranked: tuple[str, ...]) -> Measurement | None:
    """What has to be measured first, beside `output`: scores, or the input Gram matrices that come with them."""
    wanted = unranked or (request.compensates and request.moments is None)
    if not wanted or not request.data or request.scores is not None:
        return None
    return Measurement(
        request.model, request.data, request.scores_file(output), request.samples, request.seq_len, request.compensates,
        request.dequantize,
    )  # fmt: skip


def _missing(request: PruneRequest, source: Checkpoint | Architecture, output: Path, unranked: tuple[str, ...]) -> str:
    """What the request needs and nobody has measured; input Gram matrices that are there are opened."""
    if not isinstance(source, Checkpoint):
        return ""
    if unranked:
        return f"no scores for {', '.join(unranked)}: pruning needs to know what matters"
    if not request.compensates:
        return ""
    place = request.moments_directory(output)
    if request.moments is None and not place.exists():
        return f"no input Gram matrices at {place}: compensation needs them"
    open_moments(place)
    return ""
