"""Whether transformers builds and runs a shape, and the nearest shapes that it does."""

from collections.abc import Iterator, Sequence

from minitron_cli.checkpoint.architecture import Architecture, stored_weights
from minitron_cli.checkpoint.hfconfig import config_for
from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.checkpoint.validation import objections
from minitron_cli.errors import MinitronError
from minitron_cli.prune.to_dense import why_sparse
from minitron_cli.spec.axes import AXIS_OF_FLAG, FLAG_OF_AXIS, axes_of
from minitron_cli.spec.shape import Shape, can_be_cut, is_routed

_STRIDE = 16  # bytes: transformers multiplies experts by torch's grouped product, whose rows begin at multiples of it
_REACH = 64  # sizes on either side that are tried


def check_accepted(source: Checkpoint | Architecture, shape: Shape) -> None:
    """Ask transformers for the config of `shape`, which takes a second. Raises MinitronError with sizes that work."""
    if (why := obstacles(source, [shape])[0]) is not None:
        raise rejection(source, shape, f"transformers rejects the target's config: {why}")


def check_strides(source: Checkpoint | Architecture, shape: Shape) -> None:
    """Refuse experts whose first forward pass would fail."""
    if (why := _misalignment(source, shape)) is not None:
        raise rejection(source, shape, why)


def obstacles(source: Checkpoint | Architecture, shapes: Sequence[Shape]) -> list[str | None]:
    """Why each shape cannot be built or run, None where it can. Transformers is asked once for each set of widths.

    The depth stays the source's, for config lists of one entry a layer.
    """
    depth = source.shape["layer"]
    widths = [tuple(shape.with_(layer=depth).sizes.items()) for shape in shapes]
    of_widths = {key: config_for(source.config, source.family, source.shape.with_(**dict(key))) for key in widths}
    found = dict(zip(of_widths, objections(list(of_widths.values()))))
    return [_misalignment(source, shape) or found[key] for shape, key in zip(shapes, widths)]


def rejection(source: Checkpoint | Architecture, shape: Shape, why: str) -> MinitronError:
    """The error for a shape that does not work: the source's own config is to blame, or the nearest sizes are named."""
    if (own := objections([source.config])[0]) is not None:
        return MinitronError(
            f"transformers rejects the source's own config: {own}", "correct its config.json, or fetch it again"
        )
    cut = [axis for axis in AXIS_OF_FLAG.values() if axis in shape and shape[axis] != source.shape[axis]]
    nearest = {axis: _nearest(source, shape, axis) for axis in cut if axis != "layer"}
    found = "; or ".join(f"--{FLAG_OF_AXIS[axis]} {sizes}" for axis, sizes in nearest.items() if sizes)
    hint = f"nearest sizes that work: {found}" if found else "choose sizes that the model class allows"
    return MinitronError(why, hint)


def _misalignment(source: Checkpoint | Architecture, shape: Shape) -> str | None:
    wrong = _misaligned(source, shape)
    if not wrong:
        return None
    sizes = ", ".join(f"--{FLAG_OF_AXIS[axis]} {shape[axis]}" for axis in wrong)
    return f"{sizes}: the experts' matrix product runs on multiples of {max(wrong.values())} only"


def _misaligned(source: Checkpoint | Architecture, shape: Shape) -> dict[str, int]:
    """Axes of experts that were cut to sizes whose rows begin at other bytes, and the multiples they need."""
    found: dict[str, int] = {}
    if shape.get("expert") == 1 < source.shape.get("expert") and not why_sparse(source.family, shape):
        return found  # a dense model multiplies no experts
    for weight, item in stored_weights(source).items():
        axes = [axes_of(dim)[0] for dim in weight.dims if axes_of(dim) and axes_of(dim) != ("expert",)]
        if is_routed(weight) and len(axes) > 1:
            found |= {a: _STRIDE // item for a in axes if shape[a] != source.shape[a] and shape[a] * item % _STRIDE}
    return found


def _nearest(source: Checkpoint | Architecture, shape: Shape, axis: str) -> str:
    """ "441 or 450": the next smaller and the next larger size of one axis that work, all others as they are."""
    shapes = list(_neighbours(source, shape, axis))
    works = [one[axis] for one, why in zip(shapes, obstacles(source, shapes)) if why is None]
    below, above = [n for n in works if n < shape[axis]], [n for n in works if n > shape[axis]]
    return " or ".join(map(str, [*below[-1:], *above[:1]]))


def _neighbours(source: Checkpoint | Architecture, shape: Shape, axis: str) -> Iterator[Shape]:
    for size in range(max(1, shape[axis] - _REACH), min(source.shape[axis], shape[axis] + _REACH) + 1):
        one = shape.with_(**{axis: size})
        if size != shape[axis] and one != source.shape and can_be_cut(source.family, source.shape, one):
            yield one
