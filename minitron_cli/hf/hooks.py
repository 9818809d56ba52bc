"""Hook points in a model: the modules that hold the table's readers, and what goes into and comes out of blocks."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.errors import MinitronError
from minitron_cli.hf.parts import decoder_of, module_names
from minitron_cli.hf.readers import read_axis


@dataclass(frozen=True, slots=True)
class Site:
    """A hook point: the input of `module` carries the activations of `axis`.

    `readers` are the disk names of the weights that read this input. For `expert_ffn` the module is the whole set of
    experts of a layer.
    """

    axis: str
    layer: int
    module: str
    readers: tuple[str, ...] = ()


def find_sites(checkpoint: Checkpoint, model: Any, device: torch.device) -> list[Site]:
    """Every hook point of a model in memory, each distinct input once (q, k and v share one): two tokens are run."""
    sites = _candidates(checkpoint, model)
    ids = torch.zeros(1, 2, dtype=torch.int64, device=device)
    with _inputs_at(model, sites) as inputs, torch.inference_mode():
        decoder_of(model)(input_ids=ids, use_cache=False)
    return _distinct(sites, inputs)


def _candidates(checkpoint: Checkpoint, model: Any) -> list[Site]:
    """Every reader of every axis, in the order of layers and names."""
    readers = [m for m in checkpoint.matches.values() if read_axis(m.weight)]
    modules = module_names(model, [m.name for m in readers])
    found: dict[str, Site] = {}
    for m in sorted(readers, key=lambda m: (m.layer, m.name)):
        module = modules[m.name]  # one for all the experts of a layer
        before = found[module].readers if module in found else ()
        assert not before or found[module].axis == read_axis(m.weight), f"{module} reads two axes"
        found[module] = Site(str(read_axis(m.weight)), int(m.layer or 0), module, (*before, m.name))
    return list(found.values())


@contextmanager
def _inputs_at(model: nn.Module, sites: Iterable[Site]) -> Iterator[dict[str, Tensor]]:
    """Collect each site's input by module name. All are held, so that no address is used twice."""
    inputs: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        return lambda module, args: inputs.__setitem__(name, args[0])

    with ExitStack() as stack:
        for site in sites:
            handle = model.get_submodule(site.module).register_forward_pre_hook(keep(site.module))
            stack.callback(handle.remove)
        yield inputs


def _distinct(sites: Iterable[Site], inputs: Mapping[str, Tensor]) -> list[Site]:
    """Keep the first site of each input tensor; a reader that was never called is an error."""
    uncalled = [site.module for site in sites if site.module not in inputs]
    if uncalled:
        raise MinitronError(
            f"the model's forward pass never uses {', '.join(uncalled[:3])}" + " ..." * (len(uncalled) > 3),
            "these modules cannot be hooked in this transformers version; please report it",
        )
    kept: dict[tuple[str, int, int, int], Site] = {}
    for site in sites:
        tensor = inputs[site.module]
        key = (site.axis, site.layer, tensor.data_ptr(), tensor.numel())
        kept[key] = replace(kept[key], readers=kept[key].readers + site.readers) if key in kept else site
    return list(kept.values())


def block_input(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """The hidden states that a decoder block was called with."""
    return args[0] if args else kwargs["hidden_states"]


def block_output(output: Any) -> Tensor:
    """The hidden states of a decoder block's output, which is a tensor or a tuple that starts with one."""
    return output[0] if isinstance(output, tuple) else output


@contextmanager
def block_inputs(blocks: Sequence[nn.Module]) -> Iterator[dict[int, Tensor]]:
    """Keep the input of every block: {layer: (batch, token, hidden)}."""
    inputs: dict[int, Tensor] = {}

    def keep(layer: int) -> Any:
        return lambda module, args, kwargs: inputs.__setitem__(layer, block_input(args, kwargs))

    with ExitStack() as stack:
        for layer, block in enumerate(blocks):
            stack.callback(block.register_forward_pre_hook(keep(layer), with_kwargs=True).remove)
        yield inputs


@contextmanager
def replaced(forwards: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Give modules another forward function; one that someone else had set before is restored at the end."""
    before: dict[nn.Module, Any] = {module: module.__dict__.get("forward") for module in forwards}
    try:
        for module, forward in forwards.items():
            module.forward = forward
        yield
    finally:
        for module, own in before.items():
            module.__dict__.pop("forward", None)
            if own is not None:
                module.forward = own
