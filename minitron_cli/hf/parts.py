"""The parts of a transformers model in memory, found by the names in its family's table."""

from collections.abc import Iterable
from typing import Any

from torch import nn

from minitron_cli.errors import MinitronError
from minitron_cli.families import family_of
from minitron_cli.spec.axes import Weight, is_norm
from minitron_cli.spec.family import Family
from minitron_cli.spec.shape import is_routed


def decoder_of(model: Any) -> nn.Module:
    """The model below its language-model head: ids -> last hidden state, final norm applied."""
    decoder = model.get_decoder()
    if decoder is None or decoder is model:
        raise MinitronError(
            f"{type(model).__name__} does not separate its decoder from its head", "give a causal language model"
        )
    return decoder


def blocks_of(model: Any) -> nn.ModuleList:
    """The decoder blocks, in order: the list whose items hold the table's per-layer weights."""
    family = _family_of(model)
    line = next(w for w in _lines(model, family) if "layer" in w.name_axes and w.kind is None)
    (module,) = module_names(model, [line.format(layer=0)]).values()
    blocks = model.get_submodule(block_name(module, 0).removesuffix(".0"))
    assert isinstance(blocks, nn.ModuleList), f"the blocks of {type(model).__name__} are a {type(blocks).__name__}"
    return blocks


def block_name(module: str, layer: int) -> str:
    """The decoder block around a module of `layer`: "model.layers.3.mlp.down_proj" -> "model.layers.3"."""
    parts = module.split(".")
    return ".".join(parts[: parts.index(str(layer)) + 1])


def input_norm_of(model: Any, layer: int) -> nn.Module | None:
    """The norm through which block `layer` reads the residual stream, or None where it reads it directly (OLMo 2)."""
    line = input_norm(_family_of(model))
    return None if line is None else _module(model, line.format(layer=layer))


def final_norm_of(model: Any) -> nn.Module:
    """The norm between the last block and the head."""
    (line,) = (w for w in _lines(model, _family_of(model)) if is_norm(w) and not w.name_axes)
    return _module(model, line.format())


def experts_of(model: Any, layer: int) -> nn.Module:
    """The module of all routed experts of a layer, called with hidden states, chosen experts and their weights."""
    line = next(weight for weight in _lines(model, _family_of(model)) if is_routed(weight))
    return _module(model, line.format(layer=layer, expert=0))


def input_norm(family: Family) -> Weight | None:
    """The line of the norm through which a block reads the residual stream: the first of a layer, or there is none."""
    first = next(w for w in family.weights if "layer" in w.name_axes)
    return first if is_norm(first) else None


def module_names(model: Any, names: Iterable[str]) -> dict[str, str]:
    """Disk name of a weight -> name of the module that holds it in memory.

    Most names are the same in both; where transformers renames on load, its own conversion mapping is followed.
    """
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    found, rename = {}, None
    for name in names:
        inside = name
        if inside not in parameters:
            rename = rename or _renamer(model)
            inside = rename(name)
        assert inside in parameters, f"{type(model).__name__} has no parameter for {name}"
        found[name] = inside.rpartition(".")[0]
    return found


def vocabulary_of(model: Any) -> int:
    """How many ids the model embeds."""
    return int(model.config.get_text_config().vocab_size)


def weight_bytes(model: nn.Module) -> int:
    """Bytes of all parameters in memory; a tied head counts once."""
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def _module(model: Any, name: str) -> nn.Module:
    return model.get_submodule(module_names(model, [name])[name])


def _family_of(model: Any) -> Family:
    return family_of(str(model.config.get_text_config().model_type))


def _lines(model: Any, family: Family) -> tuple[Weight, ...]:
    return family.expected(model.config.get_text_config().to_dict())


def _renamer(model: Any) -> Any:
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    mapping = get_model_conversion_mapping(model)
    renamings = [m for m in mapping if isinstance(m, WeightRenaming)]
    converters = [m for m in mapping if isinstance(m, WeightConverter)]
    return lambda name: rename_source_key(name, renamings, converters)[0]
