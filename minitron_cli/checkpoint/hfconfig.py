"""The config of a pruned model: sizes set, per-layer lists cut with the layers, validated by transformers itself."""

from collections.abc import Mapping
from typing import Any

from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.checkpoint.token_ids import renumbering, with_new_ids
from minitron_cli.checkpoint.validation import Rejected, causal_lm_class, understood
from minitron_cli.checkpoint.wrapping import with_text
from minitron_cli.errors import MinitronError
from minitron_cli.spec.family import Family
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
    if "layer" not in plan.kept:
        return result
    layers = [int(i) for i in plan.kept["layer"]]
    derived = {} if all(config.get(key) for key in family.per_layer) else _derived(config)
    for key in family.per_layer:
        full = config.get(key) or derived.get(key)
        if full is not None:
            _check_length(key, full, plan.source["layer"])
            result[key] = [full[i] for i in layers]
    for key in family.per_layer_index:
        if config.get(key):
            result[key] = [new for new, old in enumerate(layers) if old in config[key]]
    return {**result, **layers_stated(result, family, plan.target)}


def layers_stated(config: Mapping[str, Any], family: Family, shape: Shape) -> dict[str, Any]:
    """What a config says of layers of these kinds. Raises MinitronError where none can say it."""
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
    try:
        return understood(config)
    except Rejected as error:
        raise MinitronError(
            f"transformers rejects the source's config: {error}", "does config.json load with AutoConfig?"
        ) from error
