"""To dense: the one expert of a layer that stays becomes an MLP, and its router is dropped.

The router's only choice has weight 1, whatever its logit, so that the dense model computes what the mixture does. The
bytes are those of a mixture of one expert under other names: fused experts lie one after the other in their rows.
"""

from minitron_cli.checkpoint.writer import TensorOut
from minitron_cli.spec.axes import Weight
from minitron_cli.spec.family import Dense, Family
from minitron_cli.spec.shape import Shape


def why_sparse(family: Family, shape: Shape) -> str:
    """Why a mixture of this shape, of one expert, stays a mixture; empty where it becomes dense."""
    if family.dense is None:
        return "no dense model type computes the same"
    if "ffn" in shape and shape["ffn"] != shape["expert_ffn"]:
        return (
            f"the dense layers among its own have {shape['ffn']} neurons and the expert {shape['expert_ffn']}, and the "
            f"layers of {family.dense.model_type} are all as wide; --ffn or --expert-ffn can make them equal"
        )
    return ""


def dense_tensors(dense: Dense, weight: Weight, layer: int | None, out: TensorOut) -> tuple[TensorOut, ...]:
    """What a tensor of a mixture of one expert is called, and its shape, in the dense model; by rows, in order.

    `layer` is the target's; names are those of the dense model's table.
    """
    names = dense.lines.get(weight.name)
    if names is None or layer is None:
        return (out,)
    rows, columns = out.shape[-2:]
    assert rows % len(names) == 0, f"{out.name}: {rows} rows of {len(names)} matrices"
    return tuple(TensorOut(name.format(layer=layer), out.dtype, (rows // len(names), columns)) for name in names)
