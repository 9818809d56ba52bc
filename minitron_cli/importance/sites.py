"""Hook points in a model: the modules that hold the table's readers, each distinct input once."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.errors import MinitronError
from minitron_cli.importance.load import base_model, module_names
from minitron_cli.importance.readers import read_axis
from minitron_cli.spec.axes import Dim


@dataclass(frozen=True, slots=True)
class Site:
    """One place where an axis is heard: the input of `module`, laid out as `dim`.

    For `expert_ffn` the module is the whole set of experts of a layer.
    """

    axis: str
    layer: int
    module: str
    dim: Dim
    readers: tuple[str, ...] = ()  # disk names of the weights that read this input


def candidates(checkpoint: Checkpoint, model: Any, layers: Iterable[int]) -> list[Site]:
    """Every reader of every axis in these layers, in table order."""
    wanted = set(layers)
    readers = [m for m in checkpoint.matches.values() if read_axis(m.weight) and m.layer in wanted]
    modules = module_names(model, [m.name for m in readers])
    found: dict[str, Site] = {}
    for m in sorted(readers, key=lambda m: (m.layer, m.name)):
        module = modules[m.name]  # one for all the experts of a layer
        before = found[module].readers if module in found else ()
        assert not before or found[module].axis == read_axis(m.weight), f"{module} reads two axes"
        found[module] = Site(str(read_axis(m.weight)), int(m.layer or 0), module, m.weight.dims[-1], (*before, m.name))
    return list(found.values())


def find_sites(checkpoint: Checkpoint, model: Any, device: torch.device) -> list[Site]:
    """The sites of a resident model, each distinct input once (q, k and v share one), found by running two tokens."""
    sites = candidates(checkpoint, model, range(checkpoint.shape["layer"]))
    decoder = base_model(model)
    ids = torch.zeros(1, 2, dtype=torch.int64, device=device)
    with heard(model, sites) as inputs, torch.inference_mode():
        decoder(input_ids=ids, use_cache=False)
    return distinct(sites, inputs)


@contextmanager
def heard(model: nn.Module, sites: Iterable[Site]) -> Iterator[dict[str, Tensor]]:
    """Collect each site's input by module name. All are held, so no address can be used twice."""
    inputs: dict[str, Tensor] = {}

    def listen(name: str) -> Any:
        return lambda module, args: inputs.__setitem__(name, args[0])

    with ExitStack() as stack:
        for site in sites:
            handle = model.get_submodule(site.module).register_forward_pre_hook(listen(site.module))
            stack.callback(handle.remove)
        yield inputs


def distinct(sites: Iterable[Site], inputs: Mapping[str, Tensor]) -> list[Site]:
    """Keep the first site of each input tensor; a reader that was never called is an error."""
    silent = [site.module for site in sites if site.module not in inputs]
    if silent:
        raise MinitronError(
            f"the model's forward pass never uses {', '.join(silent[:3])}" + " ..." * (len(silent) > 3),
            "this transformers version computes the model in a way that can not be listened to; report it",
        )
    kept: dict[tuple[str, int, int, int], Site] = {}
    for site in sites:
        tensor = inputs[site.module]
        key = (site.axis, site.layer, tensor.data_ptr(), tensor.numel())
        kept[key] = replace(kept[key], readers=kept[key].readers + site.readers) if key in kept else site
    return list(kept.values())
