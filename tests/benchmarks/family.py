"""The papers' claims at toy scale, over several seeds: iterate or cut once? which ranking of shapes lasts? is the
largest shape within a budget the best one?

    python -m tests.benchmarks.family [--seeds 3] [--scale 1.0] [-o FOLDER] [--report] [--lock FILE]

    iterated    large -> middle -> small, as recipes/tiny.yaml does: 200 and 250 steps of distillation
    direct      large -> small in one cut, distilled on as many tokens as both steps of `iterated` together
    candidates  every shape within 1.8% of the small model's parameters on a grid, distilled for 250 steps from one cut

Rankings of the candidates (by size, by the search's forecast, by the loss after the cut, by 32 distillation steps) are
compared with the ranking after 250 steps: Spearman's correlation. A seed is an order of the data; a ranking is held
against the mean over the *other* seeds, so that what two runs share by their order does not count for it. The last
row is what a run of full length reaches against the others: the noise's own limit. Rankings and picks use lines held
out of the training text; what they are judged by is the toy world's validation text.

A figure is the mean over the seeds and, in brackets, the largest distance of a seed from it; nats per token. The
teacher is trained once. `--scale 0.1` makes every training ten times shorter. With `-o` what was made before is found
again, so that the same line goes on after an interruption; `--report` only prints what there is. `--lock FILE` holds a
shared lock on FILE during each training, for others who want to time something in between.
"""

import argparse
import contextlib
import fcntl
import io
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minitron_cli.__main__ import run as run_line
from minitron_cli.checkpoint.provenance import read_manifest
from minitron_cli.data.prepare import token_files
from minitron_cli.data.source import parse_sources
from minitron_cli.search.workspace import held_out_losses
from tests.benchmarks.family_report import Figures, show
from tests.benchmarks.measure import parse

STEPS = {"large": 700, "middle": 200, "small": 250, "short": 32}
TRAINING = ["--batch", 16, "--seq-len", 128, "--lr", "2e-3", "--min-lr", "2e-4", "--warmup", 4]
FROM_SCRATCH = ["--batch", 16, "--seq-len", 128, "--lr", "4e-3", "--min-lr", "4e-4"]
MIDDLE, SMALL = {"hidden": 96, "ffn": 256}, {"hidden": 72, "ffn": 176}
BUDGET = 345_096  # parameters of the small model
GRID = ["--tolerance", "1.8%", "--grid", "hidden=64:128:16", "--grid", "ffn=80:352:16", "--grid", "layers=2:5"]
TINY_GRID = ["--tolerance", "20%", "--grid", "hidden=72:88:16", "--grid", "ffn=176:176:16", "--grid", "layers=4:5"]
SELECTION_LINES = 1000


def minitron(*words: object) -> str:
    """Run one command line in this process and return its stdout."""
    with contextlib.redirect_stdout(io.StringIO()) as stdout:
        assert run_line([str(word) for word in words]) == 0, words
    return stdout.getvalue()


@dataclass(frozen=True, slots=True)
class Place:
    """Where everything lies, and how long each training is: updates by name."""

    folder: Path
    steps: dict[str, int]
    lock: Path | None
    grid: list[str]

    def __truediv__(self, name: str) -> Path:
        return self.folder / name

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        with (self.lock or self / "lock").open("w") as stream:
            fcntl.flock(stream, fcntl.LOCK_SH)
            yield

    def text(self) -> list[object]:
        return ["--data", self / "train.jsonl"]


def prepare(place: Place) -> None:
    """The toy world, with the last lines of its training text set aside for choosing; the teacher and its scores."""
    if not (place / "world").exists():
        minitron("toy", place / "world", "--seed", 0)
    lines = (place / "world" / "corpus" / "train.jsonl").read_text().splitlines(keepends=True)
    (place / "train.jsonl").write_text("".join(lines[:-SELECTION_LINES]))
    (place / "choose.jsonl").write_text("".join(lines[-SELECTION_LINES:]))
    if read_manifest(place / "large") is None:
        with place.training():
            minitron("train", place / "world" / "teacher-init", "--from-scratch", *place.text(), *FROM_SCRATCH,
                     "--steps", place.steps["large"], "-o", place / "large")  # fmt: skip
    importance(place, place / "large")


def importance(place: Place, model: Path) -> Path:
    scores = model.with_name(f"{model.name}-scores.safetensors")
    if not scores.exists():
        minitron("importance", model, *place.text(), "--samples", 1024, "--seq-len", 128, "-o", scores)
    return scores


def cut(place: Place, source: Path, sizes: dict[str, int], output: Path) -> Path:
    if read_manifest(output) is None:
        words = [word for flag, size in sizes.items() for word in (f"--{flag}", size)]
        minitron("prune", source, "--scores", importance(place, source), *words, "-o", output)
    return output


def distill(place: Place, student: Path, output: Path, steps: int, seed: int, every: int) -> Path:
    """Distill `student` from the large model, with its loss on the text for choosing at `every` so many steps."""
    if read_manifest(output) is None:
        with place.training():
            minitron("distill", student, "--teacher", place / "large", *place.text(), *TRAINING, "--loss", "logits",
                     "--eval-data", place / "choose.jsonl", "--eval-every", every, "--eval-windows", 64,
                     "--steps", steps, "--seed", seed, "-o", output)  # fmt: skip
    return output


def search(place: Place) -> list[dict[str, Any]]:
    """What `minitron search` finds, its pick first: everything measured, the best four refined."""
    large, tokens = place / "large", place.steps["short"] * 16 * 128
    scores = importance(place, large)
    with place.training():
        found = minitron("search", large, "--params", BUDGET, *place.grid, "--scores", scores, *place.text(),
                         "--eval-data", place / "choose.jsonl", "--eval-windows", 128, "--measure", 99, "--refine", 4,
                         "--refine-tokens", tokens, "--batch", 16, "--lr", "2e-3", "-o", place / "search",
                         "--json")  # fmt: skip
    return json.loads(found)["candidates"]


def held_out(place: Place, model: Path) -> float:
    """Nats per token on all of the validation text."""
    files = token_files(parse_sources([str(place / "world" / "corpus" / "valid.jsonl")]), model, "auto", None)
    cache = place / "losses" / f"{model.name}.json"
    losses = held_out_losses(model, files, seq_len=128, windows=10**6, device="cpu", cache=cache)
    return float(losses.mean())


def make(place: Place, seed: int, candidates: list[dict[str, Any]], figures: Figures) -> None:
    """Everything of one seed, and its figures."""
    small, middle, few = (place.steps[name] for name in ("small", "middle", "short"))
    wide = cut(place, place / "large", MIDDLE, place / "middle-cut")
    first = distill(place, wide, place / f"middle-{seed}", middle, seed, middle)
    second = cut(place, first, SMALL, place / f"iterated-cut-{seed}")
    once = cut(place, place / "large", SMALL, place / "direct-cut")
    arms = {
        "iterated": distill(place, second, place / f"iterated-{seed}", small, seed, small),
        "direct": distill(place, once, place / f"direct-{seed}", small + middle, seed, small + middle),
    }
    for name, model in arms.items():
        figures.arms.setdefault(name, {})[seed] = held_out(place, model)
    for candidate in candidates:
        name = candidate["name"]
        student = place / "search" / "candidates" / name
        short = distill(place, student, place / f"{name}-short-{seed}", few, seed, few)
        full = distill(place, student, place / f"{name}-full-{seed}", small, seed, max(1, small // 5))
        figures.curves.setdefault(name, {})[seed] = curve(full)
        figures.short.setdefault(name, {})[seed] = curve(short)[-1][1]
        figures.full.setdefault(name, {})[seed] = held_out(place, full)
    show(figures)


def curve(model: Path) -> list[tuple[int, float]]:
    """(step, loss on the text set aside for choosing) of every evaluation of a training run."""
    lines = (model / "run" / "metrics.jsonl").read_text().splitlines()
    return [(line["step"], line["eval_ce"]) for line in map(json.loads, lines) if "eval_ce" in line]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--lock", type=Path)
    parser.add_argument("--report", action="store_true")
    parser.set_defaults(grid=GRID)
    arguments = parse(parser, scale=0.01, seeds=2, grid=TINY_GRID)
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.output or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if arguments.report:
            show(Figures.read(folder / "figures.json"))
            return
        steps = {name: max(8, round(count * arguments.scale)) for name, count in STEPS.items()}
        place = Place(folder, steps, arguments.lock, arguments.grid)
        prepare(place)
        candidates = search(place)
        figures = Figures(candidates)
        figures.large = held_out(place, place / "large")
        for seed in range(arguments.seeds):
            make(place, seed, candidates, figures)
            figures.write(folder / "figures.json")


if __name__ == "__main__":
    main()
