"""From what the user asked for to a plan: sizes checked against the source, layers listed, scores ranked."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from minitron_cli.checkpoint.architecture import Architecture
from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.errors import MinitronError
from minitron_cli.spec.axes import AXES, FLAG_OF_AXIS, FOLLOWING_AXES, SCORED_AXES
from minitron_cli.spec.counts import runs
from minitron_cli.spec.pattern import Pattern, best_layers, continues, nearest_counts, period_of, whole_counts
from minitron_cli.spec.plan import Plan, from_scores
from minitron_cli.spec.proxy import features, forecast
from minitron_cli.spec.scores import Scores, score_shape
from minitron_cli.spec.search import near
from minitron_cli.spec.shape import Shape, check_target, num_parameters, shape_name

WIDTH_AXES = tuple(axis for axis in FLAG_OF_AXIS if axis != "layer")
ROUNDED = tuple(axis.name for axis in AXES if axis.multiple)  # by --multiple-of
FARTHEST = 0.1  # relative distance from --params beyond which no shape is taken


@dataclass(frozen=True, slots=True)
class Target:
    """The sizes asked for (axes not named stay), and the source layers to drop where they were listed.

    `pattern` is that of the source's layers, where the layers that stay are to keep it.
    """

    sizes: Mapping[str, int]
    drop_layers: tuple[int, ...] = ()
    pattern: Pattern = ()


def check_kind(kind: str | None, sizes: Mapping[str, int], lists_layers: bool) -> None:
    """`--target width|depth|both` must agree with the sizes given; without it any sizes may be."""
    width = [f"--{FLAG_OF_AXIS[axis]}" for axis in WIDTH_AXES if axis in sizes]
    depth = ["--layers"] * ("layer" in sizes) + ["--drop-layers"] * lists_layers
    if kind not in (None, "width", "depth", "both"):
        raise MinitronError(f"--target {kind} is unknown", "one of width, depth, both")
    if not width and not depth:
        raise MinitronError(
            "no target size is given", "name at least one, e.g. --hidden 3072 --ffn 9216 or --layers 16"
        )
    if kind in ("width", "both") and not width:
        raise MinitronError(f"--target {kind} needs a width", "add --hidden, --ffn, --heads, --kv-heads or --experts")
    if kind in ("depth", "both") and not depth:
        raise MinitronError(f"--target {kind} needs a depth", "add --layers 16 or --drop-layers 15-30")
    if kind == "width" and depth:
        raise MinitronError(f"--target width does not take {depth[0]}", "use --target both for width and depth")
    if kind == "depth" and width:
        raise MinitronError(f"--target depth does not take {', '.join(width)}", "use --target both for width and depth")


def target_shape(model: Checkpoint | Architecture, target: Target) -> Shape:
    """The shape asked for, checked against the source: every offence is named at once."""
    source, sizes = model.shape, dict(target.sizes)
    unknown = [f"--{FLAG_OF_AXIS[axis]}" for axis in sizes if axis not in source]
    if unknown:
        has = ", ".join(f"--{FLAG_OF_AXIS[axis]}" for axis in FLAG_OF_AXIS if axis in source)
        raise MinitronError(f"{model.family.name} models have no {', '.join(unknown)}", f"this one has {has}")
    if target.drop_layers:
        left = source["layer"] - len(target.drop_layers)
        if sizes.get("layer", left) != left:
            raise MinitronError(f"--drop-layers leaves {left} layers, --layers says {sizes['layer']}", "give only one")
        sizes["layer"] = left
    # Without grouped queries, every head has keys and values of its own and takes them along.
    for axis, group in source.groups_of():
        if axis in sizes and group in FLAG_OF_AXIS and group not in sizes and source[group] == source[axis]:
            sizes[group] = sizes[axis]
    shape = source.with_(**sizes)
    if target.drop_layers:
        shape = shape.of_layers(_left(source, target), source)
    for axis, group in source.groups_of():
        if group not in model.family.refuses:
            _check_group_alone(axis, group, source, shape, sizes)
    check_target(model.family, source, shape)
    return shape


def check_pattern(pattern: Pattern, target: Target, shape: Shape) -> None:
    """Refuse a depth, or a list of layers, that does not leave whole periods of the source's order of layers."""
    count, counts = shape["layer"], whole_counts(pattern)
    period = period_of(pattern)
    if period is None:
        raise MinitronError(
            "--keep-pattern: the source's layers have no repeating order of kinds",
            "leave out --keep-pattern; --drop-layers names those that go",
        )
    nearest = " or ".join(map(str, nearest_counts(pattern, count)))
    if count not in counts:
        raise MinitronError(
            f"--keep-pattern: {count} layers are not whole periods of {period[1]}"
            + f" after the first {period[0]}" * bool(period[0]),
            f"nearest depths of whole periods: {nearest}",
        )
    left = [layer for layer in range(len(pattern)) if layer not in target.drop_layers]
    if target.drop_layers and not continues(pattern, left):
        raise MinitronError(
            f"--keep-pattern: without layers {layer_list(target.drop_layers)}, the others are not in the source's "
            "order of kinds",
            f"drop {period[1]} neighbouring layers, or let --layers {count} choose",
        )


def pattern_warnings(pattern: Pattern, layers: Sequence[int]) -> list[str]:
    """A warning where the source's layers repeat in periods and those that stay do not follow them."""
    period = period_of(pattern)
    if period is None or continues(pattern, layers):
        return []
    return [
        f"the layers that stay no longer repeat in the source's periods of {period[1]}: config.json lists each layer's "
        "kind, but an engine that computes it from the layer's index will run another model; --keep-pattern keeps "
        "whole periods"
    ]


def check_something_is_cut(source: Shape, shape: Shape, sizes: Mapping[str, int]) -> None:
    """Refuse a request whose sizes, as given or rounded, are those of the source."""
    if shape == source:
        same = ", ".join(f"--{FLAG_OF_AXIS[axis]} {source[axis]}" for axis in FLAG_OF_AXIS if axis in sizes)
        raise MinitronError(f"nothing is cut: the source has {same} already", "give a smaller size")


def _check_group_alone(axis: str, group: str, source: Shape, shape: Shape, sizes: Mapping[str, int]) -> None:
    """Groups take their units along (KV groups their query heads); how many units are left is for the user to say."""
    if group not in sizes or axis in sizes or not 0 < shape[group] < source[group]:
        return
    size = source[axis] // source[group]
    words = next(one.words for one in AXES if one.name == axis)
    raise MinitronError(
        f"--{FLAG_OF_AXIS[group]} {shape[group]} drops the {size} {words} of each group that goes, and "
        f"--{FLAG_OF_AXIS[axis]} is not given",
        f"add --{FLAG_OF_AXIS[axis]} {shape[group] * size}",
    )


def rounded(source: Shape, target: Target, multiple: int) -> Target:
    """The target with its widths rounded to the nearest multiple (at least one of them, at most the source's size)."""
    sizes = dict(target.sizes)
    for axis in ROUNDED:
        if axis in sizes and 0 < sizes[axis] < source.get(axis):
            sizes[axis] = min(source[axis], max(1, round(sizes[axis] / multiple)) * multiple)
    return replace(target, sizes=sizes)


def target_for_budget(
    model: Checkpoint | Architecture,
    parameters: int,
    multiple: int,
    scores: Scores | None,
    depths: Sequence[int] | None = None,
    fixed: Mapping[str, int] | None = None,
) -> Target:
    """Of the shapes near this many parameters, with widths in multiples, the one that keeps the most importance.

    A forecast from the scores alone; `minitron search` measures candidates and is the better guide. Without scores
    all units count the same, which gives a shape of the right size. `depths` are the numbers of layers it may have,
    `fixed` the sizes that are given.
    """
    source = model.shape
    if parameters >= (whole := num_parameters(model.family.expected(model.config), source)):
        raise MinitronError(f"--params {parameters:,}: the source has only {whole:,}", "give a smaller number")
    found = near(model.family, model.config, source, parameters, multiple, depths, fixed)
    if not found or abs(found[0].parameters / parameters - 1) > FARTHEST:
        raise MinitronError(
            f"no shape of about {parameters:,} parameters can be cut from this {model.family.name} model",
            "below half the width and two thirds of the depth, go down in steps: prune, distill, prune again; "
            "or give --hidden, --ffn and --layers yourself",
        )
    axes = [axis for axis in SCORED_AXES if axis in source]
    ranked = scores or Scores({axis: np.ones(score_shape(axis, source)) for axis in (*axes, *_following(source))})
    best = min(found, key=lambda c: forecast(features(ranked, source, c.shape), {})).shape
    return Target({**(fixed or {}), **{axis: best[axis] for axis in axes if best[axis] != source[axis]}})


def needed_scores(source: Shape, shape: Shape, target: Target) -> list[str]:
    """The axes whose scores decide what stays; empty when the layers to drop are all that was asked."""
    axes = [axis for axis in WIDTH_AXES if axis in source and source[axis] != shape[axis]]
    group_of = {group: axis for axis, group in source.groups}
    axes = [axis for axis in (group_of.get(axis, axis) for axis in axes) if axis in SCORED_AXES]
    axes += [axis for axis in _following(source) if source[axis] != shape[axis]]
    if shape["layer"] != source["layer"] and not target.drop_layers:
        axes.append("layer")
    return list(dict.fromkeys(axes))


def _following(source: Shape) -> list[str]:
    return [axis for axis in FOLLOWING_AXES if axis in source]


def make_plan(
    source: Shape, shape: Shape, target: Target, scores: Scores | None, vocab: np.ndarray | None = None
) -> Plan:
    """The plan for a checked shape. `scores` may be absent where no ranking is needed; `vocab` are the kept ids."""
    kept = _left(source, target) if target.drop_layers else None
    if kept is None and target.pattern and shape["layer"] != source["layer"]:
        ranked = (scores or Scores({})).require("layer", source)
        kept = best_layers(target.pattern, ranked, shape["layer"]).tolist()
    plan = from_scores(scores or Scores({}), source, shape.with_(vocab=source["vocab"]), kept)
    if vocab is None:
        return plan
    return replace(plan, target=plan.target.with_(vocab=shape["vocab"]), kept={**plan.kept, "vocab": vocab})


def kept_layers(source: Shape, shape: Shape, target: Target, scores: Scores | None) -> list[int] | None:
    """The source layers that stay; None where scores that are not there choose them."""
    if target.drop_layers or shape["layer"] == source["layer"]:
        return _left(source, target)
    if scores is None:
        return None
    return [int(layer) for layer in make_plan(source, source.with_(layer=shape["layer"]), target, scores).kept["layer"]]


def _left(source: Shape, target: Target) -> list[int]:
    return [layer for layer in range(source["layer"]) if layer not in target.drop_layers]


def parse_layers(text: str, num_layers: int) -> tuple[int, ...]:
    """ "15-30" or "3,7,9-11" -> ascending indices of layers, counted from 0, that a model of `num_layers` can lose."""
    found: set[int] = set()
    for part in text.replace(" ", "").split(","):
        matched = re.fullmatch(r"(\d{1,12})(?:-(\d{1,12}))?", part, re.ASCII)
        if not matched:
            raise MinitronError(f"--drop-layers {text!r} is not a list of layers", "write it like 15-30 or 3,7,9-11")
        first, last = int(matched[1]), int(matched[2] or matched[1])
        if last < first:
            raise MinitronError(f"--drop-layers {part} counts backwards", f"write it as {last}-{first}")
        if last >= num_layers:
            raise MinitronError(
                f"--drop-layers names {part}; the source has layers 0 to {num_layers - 1}", "layers count from 0"
            )
        found.update(range(first, last + 1))
    if len(found) >= num_layers:
        raise MinitronError("--drop-layers names every layer", f"at least one of the {num_layers} must stay")
    return tuple(sorted(found))


def default_name(
    model_name: str,
    source: Shape,
    shape: Shape,
    *,
    text_only: bool = False,
    dense: bool = False,
    dtype: str | None = None,
) -> str:
    """An output name after the model and what was cut: Llama-3.1-8B-h3072-f9216, gemma-3-4b-it-text; where that is
    nothing, after the type of its dequantised weights: Qwen3-8B-FP8-bfloat16."""
    parts = ["text"] * text_only + ["dense"] * dense + [shape_name(shape, source)] * (shape != source)
    return "-".join([model_name, *(parts or [dtype or "copy"])])


def layer_list(indices: Sequence[int] | np.ndarray) -> str:
    """Ascending indices as runs: [0, 1, 2, 7] -> "0-2,7"."""
    return ",".join(f"{a}-{b}" if a != b else f"{a}" for a, b in runs(map(int, indices)))
