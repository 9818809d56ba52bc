"""Compensated against plain trimming on the real checkpoint: held-out loss right after pruning and as training goes on.

    python -m tests.benchmarks.compensation [--seeds 1] [--steps 200] [--targets h48-f128,h48-f96,f96]
                                            [--arms plain,compensated,residual] [--cache FILE]

Both students of a pair keep the same units and see the same rows: 512 calibration windows of 128 tokens, then logit
distillation on batches of 32 x 128 (AdamW 1e-3, 20 steps of warm-up, cosine to 1e-4, no decay, clip 1). Nats per token
on the first 128 windows of stories_eval. `reached` is the step at which a student first has the loss that the plain one
ends with. Results are kept in FILE, one entry a run, so that a second call goes on where the first was stopped.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch

from minitron_cli.__main__ import run as minitron
from minitron_cli.checkpoint.moments_file import moments_path
from minitron_cli.checkpoint.reader import open_checkpoint
from minitron_cli.checkpoint.scores_file import read_scores
from minitron_cli.data.order import Order
from minitron_cli.data.prepare import token_files
from minitron_cli.data.source import parse_sources
from minitron_cli.prune.compensate import open_compensation, parse_ridge
from minitron_cli.prune.run import write_pruned
from minitron_cli.prune.select import by_residual
from minitron_cli.prune.target import Target, make_plan, target_shape
from minitron_cli.training import optimizer
from minitron_cli.training.load import load_student, load_teacher
from minitron_cli.training.schedule import Schedule, learning_rate
from minitron_cli.training.step import KDStep

Curve = list[tuple[int, float]]  # (step, held-out nats per token)
DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
TEACHER = DATA / "stories260K"
SEQ_LEN, BATCH, WINDOWS, EVERY = 128, 32, 128, 10
TARGETS = {
    "h48-f128": {"hidden": 48, "ffn": 128},
    "h48-f96": {"hidden": 48, "ffn": 96},
    "f96": {"ffn": 96},
    "q4": {"head": 4},
}
# Arm -> relative ridge (None for plain trimming), and what chooses the neurons that stay.
ARMS: dict[str, tuple[str | None, str]] = {
    "plain": (None, "scores"),
    "compensated": ("1e-2", "scores"),
    "residual": ("1e-2", "residual"),
    "ridge-auto": ("auto", "scores"),
    "ridge-1e-4": ("1e-4", "scores"),
    "ridge-1e-1": ("1e-1", "scores"),
}


def measure(directory: Path, seed: int) -> Path:
    """Scores and second moments on 512 windows; returns the scores file."""
    scores = directory / f"scores-{seed}.safetensors"
    text = ["--data", str(DATA / "stories_train.jsonl"), "--separator", "bos", "--samples", "512", "--seq-len", "128"]
    done = minitron(["importance", str(TEACHER), *text, "--seed", str(seed), "--second-moments", "-o", str(scores)])
    assert done == 0
    return scores


def student(scores: Path, sizes: dict[str, int], ridge: str | None, select: str, directory: Path) -> torch.nn.Module:
    """Prune as the command does and load the result for training."""
    source, wanted = open_checkpoint(TEACHER), Target(sizes)
    found = read_scores(scores)[0]
    plan = make_plan(source.shape, target_shape(source, wanted), wanted, found)
    folded = open_compensation(moments_path(scores), parse_ridge(ridge)) if ridge else None
    if folded is not None and select == "residual":
        plan = by_residual(source, plan, folded)
    write_pruned(source, plan, directory, scores=found, compensation=folded, overwrite=True)
    return load_student(directory, from_scratch=False, seed=0)


def rows_of(name: str) -> Any:
    """The token file of one of the texts."""
    return token_files(parse_sources([str(DATA / name)]), TEACHER, separator="bos")


def distill(model: torch.nn.Module, steps: int, seed: int) -> Curve:
    """Train towards the teacher; (step, held-out nats per token) before, and after every EVERY steps."""
    step = KDStep(model, load_teacher(TEACHER, torch.float32))
    order = Order(rows_of("stories_train.jsonl"), (1.0,), SEQ_LEN, BATCH, seed)
    held = rows_of("stories_eval.jsonl")[0].windows(np.arange(WINDOWS), SEQ_LEN)
    adam = optimizer.build(step, (0.9, 0.95), 1e-8, 0.0)
    schedule = Schedule("cosine", 1e-3, 1e-4, 20, steps)
    curve = [(0, held_out(step, held))]
    for number in range(steps):
        optimizer.set_rate(adam, learning_rate(schedule, number))
        ids = torch.from_numpy(order.rows(number))
        step(ids, weights(ids))["loss"].backward()
        optimizer.clip(adam, 1.0)
        adam.step()
        adam.zero_grad()
        if (number + 1) % EVERY == 0 or number + 1 == steps // 8:
            curve.append((number + 1, held_out(step, held)))
    return curve


def weights(ids: torch.Tensor) -> torch.Tensor:
    """Every prediction weighs the same: ids (row, token) -> (row, token), 0 in the last column."""
    even = torch.full(ids.shape, 1.0 / (ids.shape[0] * (ids.shape[1] - 1)))
    even[:, -1] = 0.0
    return even


@torch.no_grad()
def held_out(step: KDStep, rows: np.ndarray) -> float:
    """Cross-entropy in nats per predicted token: rows (window, token)."""
    parts = [torch.from_numpy(part) for part in np.split(rows, len(rows) // BATCH)]
    return mean(float(step(ids, weights(ids))["ce"]) for ids in parts)


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
    marks = [0, *(steps // part for part in (8, 4, 2, 1))]
    for arm, runs in curves.items():
        means = [mean(dict(run)[mark] for run in runs) for mark in marks]
        spread = max(abs(run[-1][1] - means[-1]) for run in runs)
        found = [reached(run, plain[-1][1]) for run, plain in zip(runs, curves.get("plain", runs))]
        steps_to = f"{mean(f for f in found if f is not None):.0f}" if None not in found else "-"
        print(
            f"{target:10}{arm:14}" + "".join(f"{m:9.4f}" for m in means) + f"  +-{spread:.4f}{steps_to:>9}", flush=True
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--targets", default="h48-f128,h48-f96,f96")
    parser.add_argument("--arms", default="plain,compensated,residual")
    parser.add_argument("--cache", type=Path)
    args = parser.parse_args()
    if not (TEACHER / "config.json").is_file():
        raise SystemExit(f"skipped: there is no real checkpoint at {TEACHER}")
    marks = [0, *(args.steps // part for part in (8, 4, 2, 1))]
    print(f"{'target':10}{'arm':14}" + "".join(f"{mark:9}" for mark in marks) + f"{'seeds':>9}{'reached':>9}")
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        scores = [measure(directory, seed) for seed in range(args.seeds)]
        for target in args.targets.split(","):
            curves = {arm: runs(target, arm, scores, args.steps, args.cache, directory) for arm in args.arms.split(",")}
            show(target, curves, args.steps)


def runs(target: str, arm: str, scores: list[Path], steps: int, cache: Path | None, directory: Path) -> list[Curve]:
    """One curve a seed."""

    def make(seed: int) -> Curve:
        return distill(student(scores[seed], TARGETS[target], *ARMS[arm], directory / "student"), steps, seed)

    file = cache or directory / "runs.json"
    return [
        cached(file, f"{target} {arm} seed {seed} steps {steps}", partial(make, seed)) for seed in range(len(scores))
    ]


if __name__ == "__main__":
    main()
