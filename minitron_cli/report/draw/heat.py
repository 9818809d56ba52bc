"""Heat maps: importance per layer and unit, and which units a cut has kept."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from minitron_cli.report.draw.svg import WIDE, Picture, picture
from minitron_cli.report.draw.theme import ACCENT, INK, SERIES, SURFACE, heat_colours

# More columns than these would be thinner than a pixel can show.
_MOST_RANKS, _MOST_UNITS = 240, 640
# The colours of a ranked map go from a tenth of the row's mean to ten times as much.
_LEAST, _MOST = 0.1, 10.0


def ranked(scores: np.ndarray) -> np.ndarray:
    """Scores relative to their row's mean, largest first, at most 240 columns: (row, unit) -> (row, column)."""
    rows = -np.sort(-np.asarray(scores, np.float64), axis=-1)
    means = rows.mean(-1, keepdims=True)
    rows = rows / np.where(means > 0, means, 1.0)
    return columns(rows, _MOST_RANKS)


def columns(rows: np.ndarray, most: int) -> np.ndarray:
    """Neighbouring units as their mean, in columns that divide the axis evenly: (row, unit) -> (row, <= most)."""
    units = rows.shape[-1]
    if units <= most:
        return rows
    edges = np.linspace(0, units, most + 1).round().astype(int)
    return np.add.reduceat(rows, edges[:-1], axis=-1) / np.diff(edges)


def ranked_map(
    scores: np.ndarray, row_words: Sequence[str], unit: str, cuts: Sequence[tuple[str, int]], label: str, *key: object
) -> Picture:
    """Each row's units from the most to the least important: scores (row, unit); a line for every (model, kept)."""
    values, units = ranked(scores), scores.shape[-1]
    low, high = max(float(values.min()), _LEAST), min(float(values.max()), _MOST)

    def paint(figure: Any, narrow: bool) -> None:
        from matplotlib.colors import LogNorm

        axes = figure.subplots()
        norm = LogNorm(low, max(high, 1.05 * low))
        image = _image(axes, np.clip(values, low, None), norm, (0, 100, len(values) - 0.5, -0.5))
        _rows(axes, row_words)
        axes.set_xlabel(f"{unit} by rank (% of {units:,})" if narrow else
                        f"{unit} by rank, the most important first (% of {units:,})")  # fmt: skip
        for _, kept in cuts:
            axes.axvline(100 * kept / units, color=ACCENT, linewidth=2)
        if cuts:
            kept_words = ("\n" if narrow else "; ").join(f"{model} keeps {kept:,}" for model, kept in cuts)
            axes.set_title(f"left of the line: {kept_words}", color=INK, fontsize=11)
        _colour_key(figure, axes, image, bool(values.min() < low), bool(values.max() > high))

    height = _height(len(values), 96)
    return picture(paint, label, "ranked", *key, height=height, narrow_height=height + 15 * max(0, len(cuts) - 1))


def grid_map(
    scores: np.ndarray, row_words: Sequence[str], unit: str, dropped: np.ndarray | None, label: str, *key: object
) -> Picture:
    """Every unit in its place, for axes of few units: scores (row, unit); `dropped`, of that shape, is crossed out."""
    means = scores.mean(-1, keepdims=True)
    values = scores / np.where(means > 0, means, 1.0)

    def paint(figure: Any, narrow: bool) -> None:
        from matplotlib.colors import Normalize

        axes = figure.subplots()
        image = _image(axes, values, Normalize(0, float(values.max())), None)
        _rows(axes, row_words)
        axes.set_xlabel(unit)
        axes.set_xticks(_some(scores.shape[-1], 10 if narrow else 24))
        if dropped is not None and dropped.any():
            row, column = np.nonzero(dropped)
            for colour, width in ((SURFACE, 5), (ACCENT, 2)):  # a cross that shows on pale and on full cells
                axes.plot(column, row, linestyle="none", marker="x", color=colour, markeredgewidth=width,
                          markersize=5 if narrow else 8)  # fmt: skip
        _colour_key(figure, axes, image)

    width = min(WIDE, 190 + 40 * scores.shape[-1])
    return picture(paint, label, "grid", *key, width=width, height=_height(len(values), 84, each=26))


def kept_map(kept: np.ndarray, row_words: Sequence[str], unit: str, label: str, *key: object) -> Picture:
    """Where in the source the kept units are: kept (row, unit) of 0 and 1; wide rows show shares of neighbours."""
    values = columns(kept.astype(np.float64), _MOST_UNITS)

    def paint(figure: Any, narrow: bool) -> None:
        from matplotlib.colors import Normalize
        from matplotlib.ticker import MaxNLocator

        axes = figure.subplots()
        wide = kept.shape[-1] > _MOST_UNITS
        _image(axes, values, Normalize(0, 1), (0, kept.shape[-1], len(values) - 0.5, -0.5) if wide else None)
        axes.xaxis.set_major_locator(MaxNLocator(6 if narrow else 12, integer=True))
        _rows(axes, row_words)
        axes.set_xlabel(f"{unit}, by index in the source")

    return picture(paint, label, "kept", *key, height=_height(len(values), 66, least=14))


def layer_bars(scores: np.ndarray, dropped: Sequence[int], words: str, label: str, *key: object) -> Picture:
    """What ranks the layers, in `words`, of every layer: scores (layer,); dropped layers are hollow."""

    def paint(figure: Any, narrow: bool) -> None:
        axes = figure.subplots()
        for layer, value in enumerate(scores.tolist()):
            _cell(axes, layer, value, layer not in dropped, 0.72)
        axes.set_xticks(_some(len(scores), 12 if narrow else 32))
        axes.set_xlabel("layer")
        axes.set_ylabel(words)
        axes.grid(axis="x", visible=False)
        axes.set_xlim(-0.7, len(scores) - 0.3)

    return picture(paint, label, "layers", *key, height=240)


def layer_strip(num_layers: int, kept: Sequence[int], label: str, *key: object) -> Picture:
    """One cell per source layer: full where it was kept, hollow and crossed where it was dropped."""

    def paint(figure: Any, narrow: bool) -> None:
        axes = figure.subplots()
        for layer in range(num_layers):
            _cell(axes, layer, 1, layer in kept, 0.86)
            if layer not in kept:
                size = 4 if narrow and num_layers > 16 else 8
                axes.plot([layer], [0.5], marker="x", color=ACCENT, markersize=size, markeredgewidth=2)
        axes.set_xticks(_some(num_layers, 16 if narrow else 40))
        axes.set_yticks([])
        axes.set_xlim(-0.6, num_layers - 0.4)
        axes.set_xlabel("layer of the source")
        axes.grid(visible=False)
        axes.spines["left"].set_visible(False)

    return picture(paint, label, "strip", *key, height=78)


def _cell(axes: Any, layer: int, value: float, stays: bool, width: float) -> None:
    edge = SERIES[0] if stays else ACCENT
    axes.bar(layer, value, width=width, facecolor=SERIES[0] if stays else "none", edgecolor=edge, linewidth=1.5)


def _image(axes: Any, values: np.ndarray, norm: Any, extent: Any) -> Any:
    image = axes.imshow(values, aspect="auto", cmap=heat_colours(), norm=norm, interpolation="none", extent=extent)
    axes.grid(visible=False)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    return image


def _colour_key(figure: Any, axes: Any, image: Any, clipped_low: bool = False, clipped_high: bool = False) -> None:
    """The colours' key: multiples of the row's mean; an end at which values are clipped is marked."""
    bar = figure.colorbar(image, ax=axes, pad=0.02, aspect=12, fraction=0.05)
    bar.outline.set_visible(False)
    low, high = image.norm.vmin, image.norm.vmax
    ends = (f"{'≤ ' * clipped_low}{low:.2g}×", f"{'≥ ' * clipped_high}{high:.2g}×")
    middle = ([1.0], ["1×"]) if low < 0.8 and high > 1.25 else ([], [])
    bar.set_ticks([low, *middle[0], high], labels=[ends[0], *middle[1], ends[1]])
    bar.ax.minorticks_off()


def _rows(axes: Any, words: Sequence[str]) -> None:
    at = _some(len(words), 24)
    axes.set_yticks(at, [words[i] for i in at])
    axes.tick_params(length=0)


def _some(total: int, most: int) -> list[int]:
    """Positions for tick labels: all of them, or every second, fifth, ... so that at most `most` are shown."""
    step = next(s for s in (1, 2, 4, 5, 8, 10, 16, 20, 32, 50, 64, 100, 128, 256, 512) if total / s <= most or s == 512)
    return list(range(0, total, step))


def _height(rows: int, around: int, each: int = 20, least: int = 22) -> float:
    """A few rows get air, many rows get thin."""
    return around + max(least * 1.4 if rows == 1 else 0, rows * (each if rows <= 24 else max(7, 480 / rows)))
