"""What compensation, rotation and selection by residual add to a prune, from shapes alone: products and memory."""

from collections.abc import Iterable

from minitron_cli.prune.compensate import DOUBLE
from minitron_cli.spec.axes import NEURON_AXES, Weight, axes_of, is_embedding, reading_dim, reads, size
from minitron_cli.spec.shape import Shape, copies, is_routed

FLOPS_PER_SECOND = 100e9  # dense products in float32 on two ordinary cores; solving in float64 has half of that
_COPIES = 6  # float64 matrices as wide as the widest input that are alive while it is solved
# The axes whose units can be selected by residual: chosen anew in each layer, and read one by one by a single map.
CHOSEN = tuple(axis.name for axis in NEURON_AXES if axis.scope == ("layer",))


def compensation_cost(
    weights: Iterable[Weight], source: Shape, target: Shape, *, rotate: bool, residual: bool
) -> tuple[float, int]:
    """(float32 FLOPs, bytes at the peak) of refitting what stays.

    Products with the weights, the Gram matrices that directions are chosen by, and one solution for each input that is
    cut, of which an attention block or an MLP has one on either side.
    """
    flops, inputs = 0.0, {}
    for weight in weights:
        dim = reading_dim(weight)
        if dim is None or not copies(weight, target) or (is_embedding(weight) and not rotate):
            continue
        experts = target["expert"] if is_routed(weight) else 1
        many = copies(weight, target) * (experts if len(weight.dims) > 2 else 1)
        last = weight.dims[-2:] if dim == len(weight.dims) - 1 else weight.dims[:-3:-1]
        rows, kept = (size(dim, target.sizes) for dim in last)
        whole, width = (size(dim, source.sizes) for dim in last)
        if rotate and "hidden" in reads(weight):
            flops += 2 * many * width * (rows * kept + whole * width)
        elif rotate and "hidden" in axes_of(last[0]):
            flops += 2 * many * whole * rows * kept
        elif kept < width:
            flops += 2 * many * rows * (width - kept) * kept
        if kept < width and "layer" in weight.name_axes:
            own = experts if "expert_ffn" in reads(weight) else 1  # experts read the hidden channels together
            layers = len(target.layers_of_kind(weight.kind))
            inputs[reads(weight), weight.name.rpartition(".{layer}.")[2].split(".")[0]] = (width, kept, own, layers)
    for (axes, _), (width, kept, own, layers) in inputs.items():
        flops += layers * own * 2 * (kept**3 / 3 + 2.0 * kept**2 * (width - kept))
        if residual and axes[0] in CHOSEN:
            gone, precision = width - kept, 1 if width > DOUBLE else 2
            flops += layers * (precision * (width**3 + width * gone**2) + 2 * source["hidden"] * width * gone)
    return flops, _COPIES * 8 * max((width for width, *_ in inputs.values()), default=0) ** 2
