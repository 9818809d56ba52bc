"""Which weights read an axis: derived from the table, without torch.

A weight whose *last* dimension contains an axis reads it, so the input of that weight is where the axis' activations
are seen: the down projection's input for neurons (after the activation function, as in NVIDIA's released code; the
paper's formula is written before it), the output projection's input for heads, and for hidden channels the input of
every per-layer weight that reads them: the norm outputs, in pre-norm models. What the head reads is not among them.
"""

from minitron_cli.spec.axes import AXES, Dim, Weight, axes_of, reads
from minitron_cli.spec.family import Family
from minitron_cli.spec.shape import is_routed

READ_AXES = tuple(axis.name for axis in AXES if axis.scored == "input")  # read by plain linear layers
EXPERT, EXPERT_FFN = "expert", "expert_ffn"  # recorded inside the experts' own forward
# Beside them, what the routers do, by layer and expert: sums over tokens (ROUTED says of what), the squared change of
# the experts' output without each of them, and the Gram matrix of the router's logits.
EXPERT_ROUTING, EXPERT_DAMAGE, EXPERT_LOGITS = "expert_routing", "expert_damage", "expert_logits"
ROUTED = ("tokens", "mass", "norm", "weighted")  # 1, the gate, the output's norm, gate x norm
EXPERT_LAYOUTS: dict[str, tuple[str, ...]] = {EXPERT: ("expert",), EXPERT_FFN: ("expert", "expert_ffn")}


def read_axis(weight: Weight) -> str | None:
    """The axis that this line's tensor reads inside a layer, or None."""
    inside = reads(weight)
    if not inside or "layer" not in weight.name_axes:
        return None
    if EXPERT_FFN in inside:
        return EXPERT_FFN
    # Experts read the hidden channels too, but the router has read the same ones before them.
    if is_routed(weight):
        return None
    return next((axis for axis in READ_AXES if axis in inside), None)


def ranked_by(family: Family, axis: str) -> tuple[str, ...]:
    """The axes that what is recorded of `axis` ranks: of a matrix that reads several, each by the others' l2."""
    return (axis,) if axis in EXPERT_LAYOUTS else tuple(a for a in READ_AXES if a in axes_of(layout(family, axis)))


def layout(family: Family, axis: str) -> Dim:
    """How the units of `axis` lie along the recorded channels: ("head", "head_dim") for heads."""
    if axis in EXPERT_LAYOUTS:
        return (EXPERT_LAYOUTS[axis],)
    dims = {weight.dims[-1] for weight in family.weights if read_axis(weight) == axis}
    assert len(dims) == 1, f"{family.name}: the readers of {axis} see it laid out in {len(dims)} ways"
    return dims.pop()
