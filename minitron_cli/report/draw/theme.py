"""One set of colours for light and dark: figures are drawn with stand-ins that the page's CSS gives their values.

A stand-in is a colour that nothing else uses (`#01fe00`, `#01fe01`, ...); in the finished SVG each becomes a
CSS variable, so that one drawing follows the reader's theme.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

NAMES = ("ink", "muted", "grid", "surface", "accent", "s1", "s2", "s3", "s4", "s5", "s6", "s7")
INK, MUTED, GRID, SURFACE, ACCENT, *SERIES = (f"#01fe{i:02x}" for i in range(len(NAMES)))
STAND_INS = dict(zip((INK, MUTED, GRID, SURFACE, ACCENT, *SERIES), NAMES))

MARKERS = ("o", "s", "D", "^", "v", "P", "X")
DASHES: tuple[Any, ...] = ("-", (0, (6, 2)), (0, (2, 1.5)), (0, (7, 2, 1.5, 2)), (0, (1, 1)), (0, (9, 3)), (0, (4, 4)))

# One unit of a figure is one CSS pixel at its natural size: 72 to the inch, as the SVG backend counts.
UNITS = 72

_RC: Any = {
    "svg.fonttype": "none",
    "svg.image_inline": True,
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same layout everywhere
    "font.size": 12,
    "axes.titlesize": 12,
    "axes.labelsize": 12,
    "xtick.labelsize": 11,
    "ytick.labelsize": 11,
    "legend.fontsize": 11,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 1,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "grid.color": GRID,
    "grid.linewidth": 1,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "legend.frameon": False,
    "lines.linewidth": 2,
    "lines.solid_capstyle": "round",
    "axes.unicode_minus": True,
    "path.simplify": True,
}


@contextmanager
def canvas(width: float, height: float) -> Iterator[Any]:
    """Yield a matplotlib figure of width x height CSS pixels, themed. No display and no global backend is touched."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_RC):
        yield Figure(figsize=(width / UNITS, height / UNITS), layout="constrained")


def heat_colours() -> Any:
    """A colour map from clear to full of one hue: more is further from the page, whatever the page's colour.

    The page turns the hue round in its dark theme.
    """
    import numpy as np
    from matplotlib.colors import ListedColormap

    share = np.linspace(0.03, 1.0, 256)
    red, green, blue = 10, 66, 128
    return ListedColormap([(red / 255, green / 255, blue / 255, a) for a in share])
