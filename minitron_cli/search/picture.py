"""Loss against parameters: what was measured, what was refined, and the front that nothing beats on both."""

from pathlib import Path

from minitron_cli.search.options import Entry, SearchResult, standard_error


def write_picture(file: Path, result: SearchResult) -> Path:
    """Draw an SVG; the same result gives the same bytes."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    with pyplot.rc_context({"svg.hashsalt": "minitron", "font.size": 10, "axes.spines.top": False,
                            "axes.spines.right": False}):  # fmt: skip
        figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
        for stage, label, colour in ((1, "after the cut", "#0072B2"), (2, "after distilling", "#D55E00")):
            points = [e for e in result.entries if (e.losses if stage == 1 else e.refined) is not None]
            _scatter(axes, points, stage, label, colour)
        if result.source_loss is not None:
            axes.axhline(result.source_loss, color="#666666", linestyle=":", linewidth=1, label="the source")
        axes.set_xlabel("parameters, millions")
        axes.set_ylabel("held-out loss, nats per token")
        axes.legend(frameon=False)
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, format="svg", metadata={"Date": None})
        pyplot.close(figure)
    return file


def _scatter(axes, points: list[Entry], stage: int, label: str, colour: str) -> None:  # type: ignore[no-untyped-def]
    if not points:
        return
    values = [e.losses if stage == 1 else e.refined for e in points]
    x = [e.candidate.parameters / 1e6 for e in points]
    y = [float(v.mean()) for v in values if v is not None]
    errors = [standard_error(v) for v in values if v is not None]
    axes.errorbar(x, y, yerr=errors, fmt="o", color=colour, markersize=5, capsize=2, linewidth=1, label=label)
    front = pareto(list(zip(x, y)))
    axes.step([p[0] for p in front], [p[1] for p in front], where="post", color=colour, linewidth=1, alpha=0.5)


def pareto(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other beats in both size and loss, by ascending size."""
    front: list[tuple[float, float]] = []
    for point in sorted(points):
        if not front or point[1] < front[-1][1]:
            front.append(point)
    return front
