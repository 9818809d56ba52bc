"""Where masks act: on the weights that read what an axis carries, found from the family's table.

What a dropped unit writes is read with zeros, so that a mask multiplies the readers: the columns of the down and output
projections for neurons and heads, the gain of the norms through which the residual stream is read for hidden channels
(the columns of the matrices themselves where nothing stands between), an expert's down projection for the expert. A
layer's mask multiplies what its halves add to the stream: what writes it, or the norm after that. All this is one
multiplication of each weight, in the running model as in the one that is written at the end. Beside it a norm takes its
mean over the live coordinates, and a router leaves dropped experts out (see hooks).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from minitron_cli.hf.parts import decoder_of
from minitron_cli.spec.axes import SCOPE, Product, Weight, axes_of, is_matrix, reading_dim, reads
from minitron_cli.spec.family import Family, Match, match
from minitron_cli.spec.shape import Shape, is_routed


@dataclass(frozen=True, slots=True)
class Factor:
    """What an axis' masks multiply: dimension `dims[0]` of a tensor, laid out as `product`, in one layer.

    Masks of a layer's experts, (expert,) or (expert, unit), lie along several dimensions, those of a layer along none.
    """

    axis: str
    layer: int | None
    dims: tuple[int, ...]
    product: Product = ()

    def of(self, masks: Mapping[str, Tensor], sizes: Mapping[str, int], ndim: int) -> Tensor:
        """The factor, to be broadcast against a tensor of `ndim` dimensions; `masks` are by axis (see `by_axis`)."""
        values = masks[self.axis]
        values = values if self.layer is None else values[self.layer]
        if self.product:
            lengths = [part if isinstance(part, int) else sizes[part] for part in self.product]
            values = values.view([n if part == self.axis else 1 for part, n in zip(self.product, lengths)])
            values = values.expand(lengths).reshape(prod(lengths))
        shape = [1] * ndim
        for dim, length in zip(self.dims, values.shape):
            shape[dim] = length
        return values.view(shape)


@dataclass(frozen=True, slots=True)
class Scaled:
    """A parameter and what multiplies it; `offset` is what its module adds to it first (1 + w in Gemma's norms)."""

    module: str
    name: str
    factors: tuple[Factor, ...]
    offset: float = 0.0

    def apply(
        self, weight: Tensor, masks: Mapping[str, Tensor], sizes: Mapping[str, int], more: Tensor | float = 1.0
    ) -> Tensor:
        """The parameter that computes with these masks, times `more`; gradients reach the weight and the masks."""
        factor = more
        for one in self.factors:
            factor = factor * one.of(masks, sizes, weight.ndim)
        factor = factor.to(weight.dtype) if isinstance(factor, Tensor) else factor
        return weight * factor if not self.offset else (weight + self.offset) * factor - self.offset


@dataclass(frozen=True, slots=True)
class Norm:
    """A norm over coordinates that may be masked; `gain` is its weight, `centred` says that it subtracts the mean."""

    gain: Scaled
    live: Factor
    centred: bool


@dataclass(frozen=True, slots=True)
class Wiring:
    """All that masks do to a model: weights they multiply, norms with live coordinates, routers by layer."""

    scaled: tuple[Scaled, ...]
    norms: tuple[Norm, ...]
    routers: Mapping[str, int]


def by_axis(masks: Mapping[str, Tensor], source: Shape) -> dict[str, Tensor]:
    """Masks by gate -> by axis, in all its layers (and experts): those of heads times those of their KV groups."""
    found = dict(masks)
    for axis, group in source.groups_of():
        if {axis, group} & masks.keys():
            size = source[axis] // source[group]
            every = torch.ones((), device=next(iter(masks.values())).device)
            outer = masks[group].unsqueeze(-1) if group in masks else every
            inner = masks.get(axis, every)
            shape = (source["layer"], source[group], size)
            found[axis] = (outer * inner).expand(shape).flatten(1)
    return found


def wire(model: Any, family: Family, source: Shape, axes: Sequence[str]) -> Wiring:
    """Find what the masks of these gates' axes act on in a model in memory, on the CPU: two tokens are run through it.

    How the residual stream is read and written is seen in the data: a norm whose output a matrix reads stands before a
    half of a block (as the last one stands before the head), one that reads what a matrix has written stands after it.
    """
    matches, unknown = match(family, [name for name, _ in model.named_parameters()], source.kinds)
    assert not unknown, f"the {family.name} table does not know {unknown}"
    flow = _Flow(model, family, matches)
    masked = {*axes, *(axis for axis, group in source.groups_of() if {axis, group} & set(axes))}
    scaled, norms, routers = [], [], {}
    for name, found in matches.items():
        module, _, own = name.rpartition(".")
        offset = flow.offsets[module] if module in flow.norms and own == "weight" else 0.0
        factors = tuple(f for f in _factors(found, flow, module) if f.axis in masked)
        if factors:
            scaled.append(Scaled(module, own, factors, offset))
        if module in flow.norms and own == "weight":
            (product,) = found.weight.dims[0]
            norms += [
                Norm(
                    Scaled(module, own, factors, offset),
                    Factor(axis, found.layer if axis in SCOPE else None, (0,), product),
                    flow.centred[module],
                )
                for axis in axes_of(found.weight.dims[0])
                if axis in masked
            ]
        if _is_router(found.weight) and "expert" in axes:
            assert found.layer is not None
            routers[module] = found.layer
    return Wiring(tuple(scaled), tuple(norms), routers)


def _factors(found: Match, flow: "_Flow", module: str) -> Iterator[Factor]:
    """Everything that could multiply a parameter, whether its axis is masked or not."""
    weight, layer = found.weight, found.layer
    assert found.expert is None, f"{found.name}: experts are fused in memory"
    if module in flow.norms:
        if module in flow.stream_norms:
            yield Factor("hidden", None, (0,), weight.dims[0][0])
        elif module in flow.after:
            yield Factor("layer", layer, ())
        return
    if layer is None:
        return
    if is_matrix(weight):
        dim = reading_dim(weight)
        assert dim is not None
        for axis in reads(weight):
            if axis == "hidden" and module in flow.direct:
                yield Factor(axis, None, (dim,), weight.dims[dim][0])
            elif SCOPE.get(axis) == ("layer",):
                yield Factor(axis, layer, (dim,), weight.dims[dim][0])
            elif axis == "expert_ffn":
                yield Factor(axis, layer, (0, dim))
    if axes_of(weight.dims[0]) == ("expert",) and _writes_stream(weight):
        yield Factor("expert", layer, (0,))
    if _writes_stream(weight) and module not in flow.covered:
        yield Factor("layer", layer, ())


def _writes_stream(weight: Weight) -> bool:
    """Whether a per-layer line's output is hidden channels: an output or down projection, or its bias."""
    at = reading_dim(weight)
    written = [dim for i, dim in enumerate(weight.dims) if i != at]
    # A convolution has three dimensions too: it mixes no channels, and what it makes is multiplied yet.
    plain = len(weight.dims) < 3 or axes_of(weight.dims[0]) == ("expert",)
    return "layer" in weight.name_axes and plain and (("hidden",),) in written


def _is_router(weight: Weight) -> bool:
    return is_matrix(weight) and axes_of(weight.dims[0]) == ("expert",) and not is_routed(weight)


class _Flow:
    """Which norms stand before, and which after, the matrices of a model, as two tokens pass through it.

    `norms` are all modules whose only matrix-free line is a vector of weights; `stream_norms` those through which the
    residual stream is read; `after` those after a half of a block, which stand for the matrices in `covered`; `direct`
    the matrices that read the stream without a norm.
    """

    def __init__(self, model: Any, family: Family, matches: Mapping[str, Match]) -> None:
        lines: dict[str, list[Weight]] = {}
        for name, found in matches.items():
            lines.setdefault(name.rpartition(".")[0], []).append(found.weight)
        layered = {name.rpartition(".")[0] for name, found in matches.items() if found.layer is not None}
        matrices = {module for module, weights in lines.items() if any(map(is_matrix, weights))}
        names = {name.rpartition(".")[0] for name in matches if name.endswith(".weight")}
        self.norms = {module for module in lines if module in names - matrices}
        over_hidden = {m for m in self.norms if any(axes_of(w.dims[0]) == ("hidden",) for w in lines[m])}
        readers = {m for m in matrices & layered if any(reads(w) == ("hidden",) for w in lines[m])}
        writers = {m for m in matrices & layered if any(is_matrix(w) and _writes_stream(w) for w in lines[m])}
        inputs, outputs = _run(model, over_hidden | readers | writers)
        made = {_key(outputs[m]): m for m in over_hidden}
        listed = _norms_of_table(family, matches)
        before = {m: made.get(_key(inputs[m]), listed.get(m)) for m in readers}
        self.direct = {m for m, norm in before.items() if norm is None}
        read = {norm for norm in before.values() if norm is not None}
        self.stream_norms = read | (over_hidden - layered)
        written = {_key(outputs[m]): m for m in writers}
        self.after = {m for m in over_hidden - self.stream_norms if _key(inputs[m]) in written}
        self.covered = {written[_key(inputs[m])] for m in self.after}
        lost = over_hidden - self.stream_norms - self.after
        assert not lost, f"these norms stand neither before nor after a half of a block: {sorted(lost)}"
        probes = {m: _probe(model.get_submodule(m)) for m in self.norms}
        self.offsets = {m: offset for m, (offset, _) in probes.items()}
        self.centred = {m: centred for m, (_, centred) in probes.items()}


def _norms_of_table(family: Family, matches: Mapping[str, Match]) -> dict[str, str]:
    """The norm before each matrix by the table alone, for models that scale what the norm gives."""
    at = {(found.weight.name, found.layer): name.rpartition(".")[0] for name, found in matches.items()}
    lines = {name.rpartition(".")[0]: (family.norm_of(found.weight), found.layer) for name, found in matches.items()}
    return {module: at[str(line), layer] for module, (line, layer) in lines.items() if (line, layer) in at}


def _key(tensor: Tensor) -> tuple[int, int]:
    return tensor.data_ptr(), tensor.numel()


@torch.no_grad()
def _run(model: Any, modules: set[str]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What goes into and comes out of modules. All is held, so that no address is used twice."""
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            inputs[name] = args[0]
            outputs[name] = output[0] if isinstance(output, tuple) else output

        return hook

    training = model.training
    with ExitStack() as stack:
        for name in modules:
            stack.callback(model.get_submodule(name).register_forward_hook(keep(name)).remove)
        model.eval()
        decoder_of(model)(input_ids=torch.zeros(1, 2, dtype=torch.int64), use_cache=False)
        model.train(training)
    return inputs, outputs


@torch.no_grad()
def _probe(norm: nn.Module) -> tuple[float, bool]:
    """What a norm adds to its weight, 0 or 1, and whether it subtracts the mean."""
    weight: Tensor = norm.weight  # type: ignore[assignment]
    x = torch.randn(2, weight.numel(), generator=torch.Generator().manual_seed(0)).to(weight.dtype)
    none = norm(torch.zeros_like(x))  # the bias, if there is one
    for offset in (0.0, 1.0):
        silent = torch.func.functional_call(norm, {"weight": torch.full_like(weight, -offset)}, (x,))
        if torch.equal(silent, none):
            return offset, torch.allclose(norm(x), norm(x + 1), rtol=1e-3, atol=1e-4)
    raise AssertionError(f"{type(norm).__name__} is not linear in its weight")
