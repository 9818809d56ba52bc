"""What the input Gram matrices of a model take, in memory and on disk: from headers alone, without torch."""

from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.hf.readers import EXPERT_FFN
from minitron_cli.importance.sums import HALVES
from minitron_cli.spec.axes import reading_dim, reads, size
from minitron_cli.spec.shape import is_routed

DOUBLE = 2048  # up to this width sums are float64: it costs nothing there


def bytes_of(checkpoint: Checkpoint) -> tuple[int, int]:
    """Bytes that the sums take in memory: (of all layers together, of one layer)."""
    one = [
        sum(HALVES * (8 if width <= DOUBLE else 4) * width * width for width in widths)
        for widths in widths_of(checkpoint).values()
    ]
    return sum(one), max(one, default=0)


def disk_bytes(checkpoint: Checkpoint) -> int:
    """Bytes that they take on disk, with those of the final norm's output."""
    widths = [width for one in widths_of(checkpoint).values() for width in one]
    return sum(4 * width * (width + 1) for width in (*widths, checkpoint.shape["hidden"]))


def widths_of(checkpoint: Checkpoint) -> dict[int, list[int]]:
    """Widths of the distinct inputs of each layer."""
    found: dict[tuple[int, str], int] = {}
    for m in checkpoint.matches.values():
        axes = reads(m.weight)
        if axes and m.layer is not None and (EXPERT_FFN in axes or not is_routed(m.weight)):
            found[m.layer, axes[0]] = size(m.weight.dims[reading_dim(m.weight) or 0], checkpoint.shape.sizes)
    widths: dict[int, list[int]] = {}
    for (layer, axis), width in found.items():
        # Attention and MLP read the hidden channels, each expert its neurons, one matrix everything else.
        many = {"hidden": 2, EXPERT_FFN: checkpoint.shape.get("expert", 1)}.get(axis, 1)
        widths.setdefault(layer, []).extend([width] * many)
    return widths
