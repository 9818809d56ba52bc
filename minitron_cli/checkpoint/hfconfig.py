"""The config of a pruned model: sizes set, per-layer lists cut with the layers, validated by transformers itself."""

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.checkpoint.token_ids import renumbering, with_new_ids
from minitron_cli.checkpoint.validation import Rejected, causal_lm_class, understood
from minitron_cli.checkpoint.wrapping import with_text
from minitron_cli.errors import MinitronError
from minitron_cli.families import family_of
from minitron_cli.spec.family import Family
from minitron_cli.spec.pattern import Pattern
from minitron_cli.spec.plan import Plan
from minitron_cli.spec.shape import Shape, computed


def config_for(config: Mapping[str, Any], family: Family, target: Shape) -> dict[str, Any]:
    """`config` with the sizes of `target`. `head_dim` is always written where the family has a key for it.

    Runtimes that derive head_dim from hidden / heads break on pruned models otherwise.
    """
    keys = {axis: family.key(axis, config) for axis in family.config_keys if axis in target}
    stated = {key: target[axis] for axis, key in keys.items() if key is not None}
    return {**config, **stated, **computed(family, target)}


def pruned_config(config: Mapping[str, Any], family: Family, plan: Plan) -> dict[str, Any]:
    """The config of the model that `plan` leaves, per-layer lists selected and layer indices renumbered,
    token ids too where the vocabulary is cut.

    Lists that transformers derives when they are absent (alternating attention) are written out when layers go,
    because deriving them again for the remaining layers would give another model.
    """
    result = config_for(config, family, plan.target)
    if "vocab" in plan.kept:
        result = with_new_ids(result, renumbering(plan.kept["vocab"], plan.source["vocab"]))
    result.update({key: 0 for key in family.predictors if result.get(key)})
    result |= _layers_kept(config, result, family, plan)
    return dense_config(result, family) if plan.dense else result


def _layers_kept(config: Mapping[str, Any], pruned: Mapping[str, Any], family: Family, plan: Plan) -> dict[str, Any]:
    """The config values of a pruned model that concern its layers."""
    if "layer" not in plan.kept:
        return {}
    layers = [int(i) for i in plan.kept["layer"]]
    lists = layer_lists(config, family, plan.source["layer"])
    result: dict[str, Any] = {key: [full[i] for i in layers] for key, full in lists.items()}
    for key in family.per_layer_index:
        if config.get(key):
            result[key] = [new for new, old in enumerate(layers) if old in config[key]]
    return {**result, **layers_stated({**pruned, **result}, family, plan.target)}


def dense_config(config: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """The config of the dense model that a mixture of one expert is.

    Keys that only the mixture's class knows are left out. Where the two classes have different values for what the
    config leaves unsaid, those of the mixture are written.
    """
    dense, width = family.dense, family.key("expert_ffn", config)
    assert dense is not None
    full, usual = _derived(config), _derived({"model_type": dense.model_type})
    left = {key: value for key, value in config.items() if key in usual or key not in full}
    left |= {key: full[key] for key in full if key in usual and key not in left and full[key] != usual[key]}
    left |= {**dense.config, "model_type": dense.model_type}
    if (name := causal_lm_class(dense.model_type)) is not None and "architectures" in config:
        left["architectures"] = [name]
    return {**left, family_of(dense.model_type).config_keys["ffn"]: config[str(width)]}


def layer_lists(config: Mapping[str, Any], family: Family, num_layers: int) -> dict[str, list[Any]]:
    """The lists of one entry a layer that a config has, or that transformers derives where it has none."""
    derived = {} if all(config.get(key) for key in family.per_layer) else _derived(config)
    found = {key: config.get(key) or derived.get(key) for key in family.per_layer}
    lists = {key: full for key, full in found.items() if full is not None}
    for key, full in lists.items():
        _check_length(key, full, num_layers)
    return lists


def layer_pattern(config: Mapping[str, Any], family: Family, shape: Shape) -> Pattern:
    """All in which layers differ, layer by layer: the kinds, and the entries of the config's lists."""
    lists = layer_lists(config, family, shape["layer"]).values()
    return tuple((*(shape.kinds[i] if shape.kinds else ()), *(one[i] for one in lists)) for i in range(shape["layer"]))


def layers_stated(config: Mapping[str, Any], family: Family, shape: Shape) -> dict[str, Any]:
    """The config values that state these kinds of layers. Raises MinitronError where no config can."""
    found: dict[str, Any] = {}
    for way, kinds in zip(family.kinds, zip(*shape.kinds)):
        found.update(way.write({**config, **found}, kinds))
    return found


def written_config(checkpoint: Checkpoint, plan: Plan) -> dict[str, Any]:
    """All of config.json of the checkpoint that `plan` leaves: of a model of text and images that of the whole, or of
    its text model where that is alone."""
    text = pruned_config(checkpoint.config, checkpoint.family, plan)
    if checkpoint.is_text_alone and (name := causal_lm_class(text["model_type"])) is not None:
        return {**text, "architectures": [name]}
    if checkpoint.wrapping is None:
        return text
    whole = checkpoint.whole
    if "vocab" in plan.kept:
        whole = with_new_ids(whole, renumbering(plan.kept["vocab"], plan.source["vocab"]))
    return with_text(whole, checkpoint.wrapping.wrapper, text, plan.target)


def _check_length(key: str, values: Any, num_layers: int) -> None:
    if not isinstance(values, list) or len(values) != num_layers:
        raise MinitronError(
            f"config.json: {key} must list one entry for each of the {num_layers} layers, got {values!r}",
            "config.json and the weights do not belong together; fetch them again",
        )


def validate_config(config: Mapping[str, Any]) -> None:
    """Let transformers build the config; what it rejects becomes an error."""
    try:
        understood(config)
    except Rejected as error:
        raise MinitronError(
            f"transformers rejects the target's config: {error}",
            "choose sizes that the model class allows (some need hidden to be a multiple of heads)",
        ) from error


def _derived(config: Mapping[str, Any]) -> dict[str, Any]:
    return _derived_once(json.dumps(dict(config)))


@cache
def _derived_once(config: str) -> dict[str, Any]:
    """What transformers makes of a config, given as JSON: it takes a second, and a prune asks more than once."""
    try:
        return understood(json.loads(config))
    except Rejected as error:
        raise MinitronError(
            f"transformers rejects the source's config: {error}", "does config.json load with AutoConfig?"
        ) from error
