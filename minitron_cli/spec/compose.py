"""Two cuts as one: indices into a cut model, traced back to the model it was cut from."""

import numpy as np

from minitron_cli.spec.axes import SCOPE
from minitron_cli.spec.plan import Plan, where_kept


def compose(first: Plan, second: Plan) -> Plan:
    """The plan that leads from `first`'s source straight to `second`'s target; `second` cuts what `first` leaves."""
    assert dict(first.target.sizes) == dict(second.source.sizes), "the second plan cuts another model"
    assert first.basis is None, "a rotated residual stream has no channels of the source's"
    assert second.basis is None, "a rotated residual stream has no channels of the source's"
    kept = {}
    for axis in sorted({*first.kept, *second.kept}):
        outer, inner = _seen_by(first, second, axis), second.kept.get(axis)
        kept[axis] = outer if inner is None else np.take_along_axis(outer, inner, axis=-1)
    return Plan(first.source, second.target, kept)


def _seen_by(first: Plan, second: Plan, axis: str) -> np.ndarray:
    """`first`'s source indices of an axis, for the layers and experts that `second` keeps."""
    scope = tuple(first.target[outer] for outer in SCOPE.get(axis, ()))
    everything = np.broadcast_to(np.arange(first.target[axis]), (*scope, first.target[axis]))
    index = first.kept.get(axis, everything)
    return np.ascontiguousarray(where_kept(index, axis, second.kept))
