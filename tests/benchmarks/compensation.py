"""Compensated against plain trimming: held-out loss right after pruning and as training goes on.

    python -m tests.benchmarks.compensation [--world stories|toy] [--seeds 3] [--steps 200] [--lr 1e-3]
        [--targets h48-f128,h48-f96,f96] [--arms plain,compensated,residual,rotated] [--work DIR]

`stories` is the real checkpoint of 260K parameters, `toy` the large model of recipes/tiny.yaml, which is trained first.
Students of one seed see the same rows: 512 calibration windows of 128 tokens, then logit distillation with AdamW,
warm-up, cosine to a tenth, no decay, clip 1. Nats per token on 128 held-out windows at the start, after an eighth, a
quarter, half and all of the steps; `reached` is the share of the steps after which a student first has the loss that
the plain one of its seed ends with. Everything is kept in DIR, so that a second call goes on where one was stopped.
"""

import argparse
import io
import json
import tempfile
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch

from minitron_cli.__main__ import run as minitron
from minitron_cli.data.order import Order
from minitron_cli.data.prepare import token_files
from minitron_cli.data.source import parse_sources
from minitron_cli.training import optimizer
from minitron_cli.training.load import load_student, load_teacher
from minitron_cli.training.schedule import Schedule, learning_rate
from minitron_cli.training.step import kd_step
from tests.benchmarks.measure import parse

Curve = list[tuple[int, float]]  # (step, held-out nats per token)
DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
SEQ_LEN, WINDOWS, EVERY = 128, 128, 10
LEAST = ["--compensate", "least-squares"]
ARMS: dict[str, list[str]] = {
    "plain": [],
    "compensated": LEAST,
    "residual": [*LEAST, "--select", "residual"],
    "rotated": [*LEAST, "--select", "residual", "--rotate"],
    "ridge-auto": [*LEAST, "--ridge", "auto"],
    "ridge-1e-4": [*LEAST, "--ridge", "1e-4"],
    "ridge-1e-1": [*LEAST, "--ridge", "1e-1"],
}


@dataclass(frozen=True)
class World:
    """A teacher with its texts, the cuts to try, and how its students are trained."""

    teacher: Path
    train: Path
    held: Path
    separator: list[str]
    targets: dict[str, list[str]]
    batch: int
    lr: float
    warmup: int


def stories(work: Path) -> World:
    """The real checkpoint."""
    if not (DATA / "stories260K" / "config.json").is_file():
        raise SystemExit(f"skipped: there is no real checkpoint at {DATA}")
    targets = {
        "h48-f128": ["--hidden", "48", "--ffn", "128"],
        "h48-f96": ["--hidden", "48", "--ffn", "96"],
        "f96": ["--ffn", "96"],
        "q4": ["--heads", "4"],
    }
    texts = (DATA / "stories_train.jsonl", DATA / "stories_eval.jsonl")
    return World(DATA / "stories260K", *texts, ["--separator", "bos"], targets, batch=32, lr=1e-3, warmup=20)


def toy(work: Path) -> World:
    """The toy world's large model, trained unless it is there."""
    quietly(["run", "tiny", "--until", "large", "-o", work / "toy"])
    targets = {
        "h96-f256": ["--hidden", "96", "--ffn", "256"],
        "h72-f176": ["--hidden", "72", "--ffn", "176"],
    }
    corpus = work / "toy" / "world" / "corpus"
    texts = (corpus / "train.jsonl", corpus / "valid.jsonl")
    return World(work / "toy" / "large", *texts, [], targets, batch=16, lr=2e-3, warmup=10)


WORLDS: dict[str, Callable[[Path], World]] = {"stories": stories, "toy": toy}


def quietly(line: Sequence[object]) -> None:
    """Run a command line; its table is not this benchmark's."""
    with redirect_stdout(io.StringIO()):
        assert minitron([str(word) for word in line]) == 0


def measure(world: World, work: Path, seed: int) -> Path:
    """Scores and input Gram matrices on 512 windows; returns the scores file."""
    scores = work / f"{world.teacher.name}-{seed}.safetensors"
    text = ["--data", str(world.train), *world.separator, "--samples", "512", "--seq-len", str(SEQ_LEN)]
    quietly(["importance", world.teacher, *text, "--seed", seed, "--second-moments", "-o", scores])
    return scores


def student(world: World, scores: Path, target: str, arm: str, work: Path) -> torch.nn.Module:
    """Prune by the command line and load the result for training."""
    with tempfile.TemporaryDirectory(dir=work) as directory:
        output = Path(directory) / "student"
        options = [*world.targets[target], *ARMS[arm], "--scores", scores, "-o", output]
        if arm in ("residual", "rotated") and "--ffn" not in options:
            options = [word for word in options if word not in ("--select", "residual")]
        quietly(["prune", world.teacher, *options])
        return load_student(output, from_scratch=False, seed=0)


def rows_of(world: World, file: Path) -> Any:
    """The token file of one of the texts."""
    separator = {"separator": world.separator[1]} if world.separator else {}
    return token_files(parse_sources([str(file)]), world.teacher, **separator)


def distill(world: World, model: torch.nn.Module, steps: int, lr: float, seed: int) -> Curve:
    """Train towards the teacher; (step, held-out nats per token) at the `marks` and after every EVERY steps."""
    step = kd_step(model, load_teacher(world.teacher, torch.float32))
    order = Order(rows_of(world, world.train), (1.0,), SEQ_LEN, world.batch, seed)
    held = rows_of(world, world.held)[0].windows(np.arange(WINDOWS), SEQ_LEN)
    adam = optimizer.build(step, (), (0.9, 0.95), 1e-8, 0.0)
    schedule = Schedule("cosine", lr, lr / 10, world.warmup, steps)
    curve = [(0, held_out(model, held))]
    for number in range(steps):
        optimizer.set_rate(adam, learning_rate(schedule, number))
        ids = torch.from_numpy(order.rows(number))
        step(ids, weights(ids))["loss"].backward()
        optimizer.clip(adam, 1.0)
        adam.step()
        adam.zero_grad()
        if (number + 1) % EVERY == 0 or number + 1 in marks(steps):
            curve.append((number + 1, held_out(model, held)))
    return curve


def marks(steps: int) -> list[int]:
    """The steps that the table shows: none, an eighth, a quarter, half and all of them."""
    return [0, *(steps // part for part in (8, 4, 2, 1))]


def weights(ids: torch.Tensor) -> torch.Tensor:
    """Every prediction weighs the same: ids (row, token) -> (row, token), 0 in the last column."""
    even = torch.full(ids.shape, 1.0 / (ids.shape[0] * (ids.shape[1] - 1)))
    even[:, -1] = 0.0
    return even


@torch.no_grad()
def held_out(model: torch.nn.Module, rows: np.ndarray) -> float:
    """Cross-entropy in nats per predicted token: rows (window, token)."""
    alone = kd_step(model)
    parts = [torch.from_numpy(part) for part in np.split(rows, len(rows) // 32)]
    return mean(float(alone(ids, weights(ids))["ce"]) for ids in parts)


def reached(curve: Sequence[tuple[int, float]], loss: float) -> float | None:
    """The step at which the curve first comes down to `loss`, between two measurements by a straight line."""
    for (before, high), (after, low) in pairwise(curve):
        if low <= loss:
            return before + (after - before) * max(0.0, high - loss) / max(high - low, 1e-12)
    return None


def cached(file: Path, key: str, make: Callable[[], Curve]) -> Curve:
    """The curve of a run, from the file where it is there; several processes may fill one file's runs in turn."""
    known = json.loads(file.read_text()) if file.is_file() else {}
    if key not in known:
        curve = make()
        known = json.loads(file.read_text()) if file.is_file() else {}
        known[key] = curve
        file.write_text(json.dumps(known, indent=1))
    return [(int(step), float(loss)) for step, loss in known[key]]


def show(target: str, curves: dict[str, list[Curve]], steps: int) -> None:
    """One line an arm: means over the seeds, and the largest distance of a seed from the mean of the last."""
    for arm, runs in curves.items():
        means = [mean(dict(run)[mark] for run in runs) for mark in marks(steps)]
        spread = max(abs(run[-1][1] - means[-1]) for run in runs)
        found = [reached(run, plain[-1][1]) for run, plain in zip(runs, curves.get("plain", runs))]
        shares = [f / steps for f in found if f is not None]
        share = f"{mean(shares):.2f} ({min(shares):.2f}-{max(shares):.2f})" if None not in found else "-"
        print(f"{target:10}{arm:14}" + "".join(f"{m:9.4f}" for m in means) + f"  +-{spread:.4f}  {share}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", choices=WORLDS, default="stories")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--lr", type=float, help="[default: the world's own]")
    parser.add_argument("--targets", help="[default: those with a cut of the width]")
    parser.add_argument("--arms", default="plain,compensated,residual,rotated")
    parser.add_argument("--work", type=Path, help="where everything is kept [default: a temporary directory]")
    args = parse(parser, steps=8, arms="plain,compensated", targets="h48-f128")
    print(f"{'target':10}{'arm':14}" + "".join(f"{mark:9}" for mark in marks(args.steps)) + f"{'seeds':>9}  reached")
    with tempfile.TemporaryDirectory() as name:
        work = args.work or Path(name)
        work.mkdir(parents=True, exist_ok=True)
        world = WORLDS[args.world](work)
        scores = [measure(world, work, seed) for seed in range(args.seeds)]
        for target in (args.targets or ",".join(t for t in world.targets if t[0] == "h")).split(","):
            curves = {}
            for arm in args.arms.split(","):
                make = partial(one, world, target, arm, scores, args.steps, args.lr or world.lr, work)
                curves[arm] = [make(seed) for seed in range(args.seeds)]
            show(target, curves, args.steps)


def one(world: World, target: str, arm: str, scores: list[Path], steps: int, lr: float, work: Path, seed: int) -> Curve:
    """The curve of one run, made unless it is there."""

    def make() -> Curve:
        return distill(world, student(world, scores[seed], target, arm, work), steps, lr, seed)

    key = f"{world.teacher.name} {target} {arm} seed {seed} steps {steps} lr {lr:g}"
    return cached(work / "runs.json", key, make)


if __name__ == "__main__":
    main()
