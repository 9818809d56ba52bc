"""Layers of several kinds: how a config states the kind of each layer, and how it does so after a depth cut.

A kind is the name of a section of the table. A model may choose in several ways at once (recurrent or attention, dense
or sparse): each way is one `Kinds`, and a layer then has one kind of each.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from minitron_cli.errors import MinitronError

Config = Mapping[str, Any]


def _nothing(config: Config, kinds: Sequence[str]) -> dict[str, Any]:
    return {}


@dataclass(frozen=True, slots=True)
class Kinds:
    """`read` gives the kind of each layer, `write` the config values that state given kinds, for a model cut in depth.

    Config lists with an entry for each layer are selected with the layers that stay (see `Family.per_layer`) and need
    no `write`.
    """

    read: Callable[[Config, int], Sequence[str]]
    write: Callable[[Config, Sequence[str]], dict[str, Any]] = _nothing


def listed(key: str, kind_of: Mapping[str, str], otherwise: Callable[[Config, int], Sequence[str]]) -> Kinds:
    """A list with an entry for each layer, such as `layer_types`; `otherwise` gives the kinds where it is absent."""

    def read(config: Config, num_layers: int) -> Sequence[str]:
        values = config.get(key)
        if values is None:
            return otherwise(config, num_layers)
        wrong = sorted({str(v) for v in values} - kind_of.keys()) if isinstance(values, list) else [repr(values)]
        if wrong or len(values) != num_layers:
            raise MinitronError(
                f"config.json: {key} must name one of {', '.join(kind_of)} for each of the {num_layers} layers"
                + (f", not {', '.join(wrong)}" if wrong else f", it has {len(values)}"),
                "is it this model's config?",
            )
        return [kind_of[v] for v in values]

    return Kinds(read)


def every(period: int, one: str, others: str, num_layers: int) -> list[str]:
    """`one` as the last of each `period` layers, `others` elsewhere."""
    return [others if (layer + 1) % period else one for layer in range(num_layers)]


def dense_first(key: str) -> Kinds:
    """The first layers are dense, as many as `key` says, and the others sparse."""

    def read(config: Config, num_layers: int) -> Sequence[str]:
        first = config.get(key) or 0
        return ["dense" if layer < first else "sparse" for layer in range(num_layers)]

    return Kinds(read, lambda config, kinds: {key: kinds.count("dense")})


def sparse_steps(config: Config, num_layers: int) -> Sequence[str]:
    """Qwen: every `decoder_sparse_step`th layer is sparse, but for those that `mlp_only_layers` lists."""
    step, dense = config.get("decoder_sparse_step") or 1, config.get("mlp_only_layers") or []
    return ["sparse" if layer not in dense and (layer + 1) % step == 0 else "dense" for layer in range(num_layers)]


def _list_dense(config: Config, kinds: Sequence[str]) -> dict[str, Any]:
    dense = [layer for layer, kind in enumerate(kinds) if kind == "dense"]
    return {"decoder_sparse_step": 1, "mlp_only_layers": dense}


SPARSE_STEPS = Kinds(sparse_steps, _list_dense)
