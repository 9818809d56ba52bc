"""Heat maps: importance per layer and unit, and which units a cut has kept."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from minitron_cli.report.draw.svg import to_svg
from minitron_cli.report.draw.theme import ACCENT, INK, SERIES, SURFACE, canvas, heat_colours
from minitron_cli.report.html import Html

# More columns than these would be thinner than a pixel can show.
_MOST_RANKS, _MOST_UNITS = 240, 640
_WIDTH = 720


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
    name: str, scores: np.ndarray, row_words: Sequence[str], unit: str, cuts: Sequence[tuple[str, int]], label: str
) -> Html:
    """Each row's units from the most to the least important: scores (row, unit); a line for every (model, kept)."""
    from matplotlib.colors import LogNorm

    values, units = ranked(scores), scores.shape[-1]
    low, high = max(float(values.min()), 0.1), min(float(values.max()), 10.0)
    with canvas(_WIDTH, _height(len(values), 96)) as figure:
        axes = figure.subplots()
        norm = LogNorm(low, max(high, 1.05 * low))
        image = _image(axes, np.clip(values, low, None), norm, (0, 100, len(values) - 0.5, -0.5))
        _rows(axes, row_words)
        axes.set_xlabel(f"{unit} by rank, the most important first (% of {units:,})")
        for _, kept in cuts:
            axes.axvline(100 * kept / units, color=ACCENT, linewidth=2)
        if cuts:
            kept_words = "; ".join(f"{model} keeps {kept:,} of {units:,}" for model, kept in cuts)
            axes.set_title(f"left of the line: {kept_words}", color=INK, fontsize=11)
        _bar(figure, axes, image)
        return to_svg(figure, name, label)


def grid_map(
    name: str, scores: np.ndarray, row_words: Sequence[str], unit: str, dropped: np.ndarray | None, label: str
) -> Html:
    """Every unit in its place, for axes of few units: scores (row, unit); `dropped`, of that shape, is crossed out."""
    from matplotlib.colors import Normalize

    means = scores.mean(-1, keepdims=True)
    values = scores / np.where(means > 0, means, 1.0)
    with canvas(min(_WIDTH, 190 + 40 * scores.shape[-1]), _height(len(values), 84, each=26)) as figure:
        axes = figure.subplots()
        image = _image(axes, values, Normalize(0, float(values.max())), None)
        _rows(axes, row_words)
        axes.set_xlabel(unit)
        axes.set_xticks(_some(scores.shape[-1], 24))
        if dropped is not None and dropped.any():
            row, column = np.nonzero(dropped)
            for colour, width in ((SURFACE, 5), (ACCENT, 2)):  # a cross that shows on pale and on full cells
                axes.plot(column, row, linestyle="none", marker="x", color=colour, markersize=8, markeredgewidth=width)
        _bar(figure, axes, image)
        return to_svg(figure, name, label)


def kept_map(name: str, kept: np.ndarray, row_words: Sequence[str], unit: str, label: str) -> Html:
    """Where in the source the kept units stood: kept (row, unit) of 0 and 1; wide rows show shares of neighbours."""
    from matplotlib.colors import Normalize
    from matplotlib.ticker import MaxNLocator

    values = columns(kept.astype(np.float64), _MOST_UNITS)
    with canvas(_WIDTH, _height(len(values), 66, least=14)) as figure:
        axes = figure.subplots()
        wide = kept.shape[-1] > _MOST_UNITS
        _image(axes, values, Normalize(0, 1), (0, kept.shape[-1], len(values) - 0.5, -0.5) if wide else None)
        axes.xaxis.set_major_locator(MaxNLocator(12, integer=True))
        _rows(axes, row_words)
        axes.set_xlabel(f"{unit}, by index in the source")
        return to_svg(figure, name, label)


def layer_bars(name: str, scores: np.ndarray, dropped: Sequence[int], words: str, label: str) -> Html:
    """What ranks the layers, in `words`, of every layer: scores (layer,); dropped layers are hollow."""
    with canvas(_WIDTH, 240) as figure:
        axes = figure.subplots()
        gone = set(dropped)
        for layer, value in enumerate(scores.tolist()):
            face = "none" if layer in gone else SERIES[0]
            axes.bar(
                layer,
                value,
                width=0.72,
                facecolor=face,
                edgecolor=ACCENT if layer in gone else SERIES[0],
                linewidth=1.5,
            )
        axes.set_xticks(_some(len(scores), 32))
        axes.set_xlabel("layer")
        axes.set_ylabel(words)
        axes.grid(axis="x", visible=False)
        axes.set_xlim(-0.7, len(scores) - 0.3)
        return to_svg(figure, name, label)


def layer_strip(name: str, num_layers: int, kept: Sequence[int], label: str) -> Html:
    """One cell per source layer: full where it was kept, hollow and crossed where it was dropped."""
    with canvas(_WIDTH, 78) as figure:
        axes = figure.subplots()
        stays = set(kept)
        for layer in range(num_layers):
            face, edge = (SERIES[0], SERIES[0]) if layer in stays else ("none", ACCENT)
            axes.bar(layer, 1, width=0.86, facecolor=face, edgecolor=edge, linewidth=1.5)
            if layer not in stays:
                axes.plot([layer], [0.5], marker="x", color=ACCENT, markersize=8, markeredgewidth=2)
        axes.set_xticks(_some(num_layers, 40))
        axes.set_yticks([])
        axes.set_xlim(-0.6, num_layers - 0.4)
        axes.set_xlabel("layer of the source")
        axes.grid(visible=False)
        axes.spines["left"].set_visible(False)
        return to_svg(figure, name, label)


def _image(axes: Any, values: np.ndarray, norm: Any, extent: Any) -> Any:
    image = axes.imshow(values, aspect="auto", cmap=heat_colours(), norm=norm, interpolation="none", extent=extent)
    axes.grid(visible=False)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    return image


def _bar(figure: Any, axes: Any, image: Any) -> None:
    """The colours' key: multiples of the row's mean."""
    bar = figure.colorbar(image, ax=axes, pad=0.02, aspect=12, fraction=0.05)
    bar.outline.set_visible(False)
    low, high = image.norm.vmin, image.norm.vmax
    bar.set_ticks([low, 1.0, high] if low < 0.8 and high > 1.25 else [low, high], labels=None)
    bar.ax.yaxis.set_major_formatter(lambda value, _: f"{value:.2g}×")
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
