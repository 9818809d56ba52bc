"""The layout of the running sums that a pass fills and a scores file keeps."""

from dataclasses import dataclass

SEQ = ("mean", "l2", "var")  # sequence aggregations, in the order they are stored: of |x|, of x, of x
MOMENTS = ("sum", "square")  # running sums over samples: of s and of s^2
HALVES = 2  # even and odd samples apart, for the stability report
COUNT = "count"  # samples seen, per half
LAYER = "layer"  # block influence
NORM_RATIO = "norm_ratio"  # of the norms of what leaves and what enters a block
PER_BLOCK = (LAYER, NORM_RATIO)  # sums with one value a layer; all others have rows of channels


@dataclass(frozen=True, slots=True)
class Row:
    """One recorded input of an axis: its layer, and the weights (disk names) that read it."""

    layer: int
    readers: tuple[str, ...] = ()


Rows = dict[str, list[Row]]  # axis -> its rows, in the order of the running sums
