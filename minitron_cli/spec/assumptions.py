"""What engines take for granted of the models of one architecture, and where a pruned model differs from it.

A family lists its own. They were read in the sources of the releases that `engines.READ` names.
"""

from collections.abc import Mapping
from typing import Any

from minitron_cli.spec.family import Assumption
from minitron_cli.spec.shape import Shape

Config = Mapping[str, Any]


def head_size(*engines: str, types: tuple[str, ...] = ()) -> Assumption:
    """The engine computes the channels of a head as hidden / heads, whatever the config says."""

    def breach(config: Config, shape: Shape) -> str:
        if not shape.layers_of("head") or shape["hidden"] == shape["head"] * shape["head_dim"]:
            return ""
        return (
            f"it gives a head hidden / heads = {shape['hidden'] / shape['head']:g} channels, "
            f"where this model has {shape['head_dim']}"
        )

    return Assumption(engines, breach, types)


def one_in(period: int | str, value: Any, *engines: str, key: str = "layer_types", otherwise: int = 0) -> Assumption:
    """The engine takes the last layer of each `period` for `value` in the list `key`, and no other layer.

    The period is a number, or the config key that states it (`otherwise` where the key is absent) as a number, or as a
    text with one letter for each layer of a period.
    """

    def breach(config: Config, shape: Shape) -> str:
        stated = config.get(period, otherwise) if isinstance(period, str) else period
        every = len(stated) if isinstance(stated, str) else stated
        listed = config.get(key)
        if not every or listed is None:
            return ""
        odd = [layer for layer, one in enumerate(listed) if (one == value) != ((layer + 1) % every == 0)]
        if not odd:
            return ""
        others = f" and {len(odd) - 1} more differ" * (len(odd) > 1) or " differs"
        return (
            f"it takes the last of every {every} layers, and no other, for {value}, without reading {key}: "
            f"layer {odd[0]}{others}"
        )

    return Assumption(engines, breach)


def sparse_throughout(*engines: str) -> Assumption:
    """The engine expects experts in every layer."""

    def breach(config: Config, shape: Shape) -> str:
        dense = len(shape.layers_of_kind("dense"))
        return f"it expects experts in every layer, and {dense} {'has' if dense == 1 else 'have'} none" if dense else ""

    return Assumption(engines, breach)


def absent(*engines: str) -> Assumption:
    """The engine does not know this type of model."""
    return Assumption(engines, lambda config, shape: "it does not know models of this type")
