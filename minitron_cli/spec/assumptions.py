"""What engines take for granted of the models of one architecture, and where a pruned model differs from it.

A family lists its own. They were read in the sources of the releases that `engines.READ` names.
"""

from collections.abc import Mapping
from typing import Any

from minitron_cli.spec.family import Assumption
from minitron_cli.spec.shape import Shape

Config = Mapping[str, Any]


def head_size(*engines: str, types: tuple[str, ...] = ()) -> Assumption:
    """The channels of a head are computed as hidden / heads, whatever the config says."""

    def breach(config: Config, shape: Shape) -> str:
        if not shape.layers_of("head") or shape["hidden"] == shape["head"] * shape["head_dim"]:
            return ""
        return (
            f"a head is taken to have hidden / heads = {shape['hidden'] / shape['head']:g} channels, "
            f"and has {shape['head_dim']}"
        )

    return Assumption(engines, breach, types)


def one_in(period: int | str, value: Any, *engines: str, key: str = "layer_types", otherwise: int = 0) -> Assumption:
    """Layers are `value` in the list `key` where they are the last of each `period`, and nowhere else.

    The period is a number, or the key of the config that has it (`otherwise`, where it has none): a number, or a text
    of one letter a layer.
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
        others = f" and {len(odd) - 1} more are" * (len(odd) > 1) or " is"
        return (
            f"one layer in {every}, the last, is taken to be {value} in {key}, whatever the list says: "
            f"layer {odd[0]}{others} not what it is taken for"
        )

    return Assumption(engines, breach)


def sparse_throughout(*engines: str) -> Assumption:
    """Every layer has experts."""

    def breach(config: Config, shape: Shape) -> str:
        dense = len(shape.layers_of_kind("dense"))
        return (
            f"every layer is taken to have experts, and {dense} of them {'has' if dense == 1 else 'have'} none"
            if dense
            else ""
        )

    return Assumption(engines, breach)


def absent(*engines: str, types: tuple[str, ...] = ()) -> Assumption:
    """The engine has no such models."""
    return Assumption(engines, lambda config, shape: "it has no models of this type", types)
