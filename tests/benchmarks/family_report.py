"""The tables of tests.benchmarks.family: arms, correlations of rankings, and what each ranking's pick costs."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

BySeed = dict[int, float]


@dataclass(slots=True)
class Figures:
    """Losses in nats per token. `candidates` are the search's, its pick first; the rest is by name and seed."""

    candidates: list[dict[str, Any]]
    large: float = float("nan")
    arms: dict[str, BySeed] = field(default_factory=dict)
    short: dict[str, BySeed] = field(default_factory=dict)
    full: dict[str, BySeed] = field(default_factory=dict)
    curves: dict[str, dict[int, list[tuple[int, float]]]] = field(default_factory=dict)

    def write(self, file: Path) -> None:
        file.write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, file: Path) -> "Figures":
        found = json.loads(file.read_text())
        for key in ("arms", "short", "full", "curves"):
            found[key] = {n: {int(seed): value for seed, value in each.items()} for n, each in found[key].items()}
        return cls(**found)

    @property
    def seeds(self) -> list[int]:
        return sorted(self.arms["direct"])


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """Rank correlation; equal values share the mean of their ranks."""
    return float(np.corrcoef(_ranks(first), _ranks(second))[0, 1])


def _ranks(values: Sequence[float]) -> np.ndarray:
    array = np.asarray(values)
    return ((array[:, None] > array).sum(1) + (array[:, None] >= array).sum(1) - 1) / 2


def spread(values: Sequence[float], form: str = ".4f") -> str:
    """Mean over the seeds, and the largest distance of one from it."""
    centre = mean(values)
    return f"{centre:{form}} (+-{max(abs(v - centre) for v in values):{form}})"


def show(figures: Figures) -> None:
    """Print every table that the figures allow so far."""
    print(f"\nseeds: {len(figures.seeds)}; large {figures.large:.4f} nats per token")
    sizes = {c["name"]: c["parameters"] for c in figures.candidates}
    searched, largest = figures.candidates[0]["name"], max(sizes, key=sizes.__getitem__)
    print(f"{'arm':<34}{'nats per token':>22}")
    rows = {
        **figures.arms,
        f"searched  {searched}": figures.full[searched],
        f"largest  {largest}": figures.full[largest],
    }
    for name, losses in rows.items():
        print(f"{name:<34}{spread(list(losses.values())):>22}")
    for first, second in (("direct", "iterated"), tuple(list(rows)[-1:1:-1])):
        gaps = [rows[first][seed] - rows[second][seed] for seed in figures.seeds]
        print(f"{first.split()[0] + ' - ' + second.split()[0]:<34}{spread(gaps):>22}")
    _candidates(figures)
    if len(figures.seeds) > 1:
        _rankings(figures)


def _candidates(figures: Figures) -> None:
    print(f"\n{'candidate':<22}{'parameters':>11}{'forecast':>10}{'after cut':>11}{'short':>22}{'full':>22}")
    for c in sorted(figures.candidates, key=lambda c: mean(figures.full[c["name"]].values())):
        short, full = (spread(list(x[c["name"]].values())) for x in (figures.short, figures.full))
        print(f"{c['name']:<22}{c['parameters']:>11,}{c['forecast']:>10.3f}{c['loss']:>11.4f}{short:>22}{full:>22}")


def _rankings(figures: Figures) -> None:
    """Each ranking against the mean over the other seeds at full length, and what its first choice loses."""
    names = [c["name"] for c in figures.candidates]
    fixed = {c["name"]: c for c in figures.candidates}
    rankings: dict[str, Callable[[str, int], float]] = {
        "parameters, largest first": lambda n, _: -fixed[n]["parameters"],
        "forecast": lambda n, _: fixed[n]["forecast"],
        "loss after the cut": lambda n, _: fixed[n]["loss"],
        "short distillation": lambda n, seed: figures.short[n][seed],
    }
    steps = [step for step, _ in figures.curves[names[0]][figures.seeds[0]]]
    for i, step in enumerate(steps[1:-1], 1):
        rankings[f"at step {step} of the full run"] = lambda n, seed, i=i: figures.curves[n][seed][i][1]  # type: ignore[misc]
    rankings["the full run, other seeds"] = lambda n, seed: figures.full[n][seed]
    print(f"\n{'ranking':<34}{'Spearman':>18}{'its pick - best':>22}")
    for title, of in rankings.items():
        found = [_held_against(figures.full, names, [of(n, seed) for n in names], seed) for seed in figures.seeds]
        print(f"{title:<34}{spread([f[0] for f in found], '.2f'):>18}{spread([f[1] for f in found]):>22}")


def _held_against(
    full: Mapping[str, BySeed], names: Sequence[str], values: Sequence[float], seed: int
) -> tuple[float, float]:
    """(rank correlation with the mean over the other seeds, loss there of the first choice over the best one's)."""
    others = [mean(loss for s, loss in full[name].items() if s != seed) for name in names]
    return spearman(values, others), others[int(np.argmin(values))] - min(others)
