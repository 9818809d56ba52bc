"""How engines can serve a model (see spec/engines): one on disk, or one that a cut would leave."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from minitron_cli.checkpoint.architecture import Architecture, architecture_of
from minitron_cli.checkpoint.hfconfig import config_for, dense_config, layer_lists, layer_pattern, pruned_config
from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.spec.engines import servable
from minitron_cli.spec.pattern import Pattern
from minitron_cli.spec.plan import Plan
from minitron_cli.spec.shape import Shape


def servable_model(model: Checkpoint | Architecture) -> dict[str, Any]:
    """The facts of `engines.servable`. Lists of layers that the config leaves out are asked of transformers."""
    lists = layer_lists(model.config, model.family, model.shape["layer"])
    return servable(
        model.family, {**model.config, **lists}, model.shape, layer_pattern(model.config, model.family, model.shape)
    )


def servable_cut(
    source: Checkpoint | Architecture,
    shape: Shape,
    layers: Sequence[int] | None,
    pattern: Pattern | None,
    dense: bool = False,
) -> dict[str, Any]:
    """The facts of what a cut to `shape` leaves, before anything is written.

    `layers` are those that stay, ascending source indices, and `pattern` the source's; None where they are not known
    yet (scores decide), and where the depth stays: the order of layers is then that of the config, if it lists one.
    With `dense` the one expert that stays becomes an MLP.
    """
    config, family = dict(source.config), source.family
    left: Pattern | None = None
    if shape["layer"] == source.shape["layer"]:
        left = tuple(shape.kinds) or None
    elif layers is None or pattern is None:
        config = {key: value for key, value in config.items() if key not in family.per_layer}
    else:
        depth = source.shape.with_(layer=len(layers)).of_layers(layers, source.shape)
        config = pruned_config(config, family, Plan(source.shape, depth, {"layer": np.array(layers)}))
        left = tuple(pattern[layer] for layer in layers)
    config = config_for(config, family, shape)
    if dense:
        model = architecture_of(dense_config(config, family))
        config, family, shape = dict(model.config), model.family, model.shape
    return servable(family, config, shape, left)
