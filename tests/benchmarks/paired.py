"""Paired training runs on the real checkpoint: one data order, several seeds, held-out loss by tokens and by FLOPs.

    python -m tests.benchmarks.paired [--seeds 3] [--steps 200] [--only kd,ce]

    kd, ce            the width-pruned student (hidden 48, ffn 128) towards its teacher, and on the text alone
    scratch           the same architecture and loss as kd from new weights
    depth, depth+     the student without two blocks, logits alone, and with intermediate and embedding losses

A row is the mean over the seeds and, in brackets, the largest distance of a seed from it; nats per token on the first
128 windows of stories_eval. `ce at kd's FLOPs` is what plain training reaches when it spends what distillation spent.
"""

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import mean

from minitron_cli.__main__ import run as minitron
from minitron_cli.training.metrics import read_metrics
from minitron_cli.training.options import Options
from minitron_cli.training.presets import resolve
from minitron_cli.training.run import train
from tests.benchmarks.measure import parse

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
TEACHER = DATA / "stories260K"
ARMS = ("kd", "ce", "scratch", "depth", "depth+")


def prune(root: Path) -> dict[str, Path]:
    """The width- and the depth-pruned student, from one pass over 512 windows."""
    scores, width, depth = root / "scores.safetensors", root / "width", root / "depth"
    text = ["--data", str(DATA / "stories_train.jsonl"), "--separator", "bos", "--samples", "512", "--seq-len", "128"]
    assert minitron(["importance", str(TEACHER), *text, "-o", str(scores)]) == 0
    common = ["--scores", str(scores)]
    assert minitron(["prune", str(TEACHER), "--hidden", "48", "--ffn", "128", *common, "-o", str(width)]) == 0
    assert minitron(["prune", str(TEACHER), "--layers", "3", *common, "-o", str(depth)]) == 0
    return {"width": width, "depth": depth}


def arm(name: str, students: dict[str, Path], output: Path, seed: int, steps: int) -> Options:
    """The options of one run; what is compared differs in nothing but the arm."""
    student = students["depth" if name.startswith("depth") else "width"]
    losses = {"depth": "logits", "depth+": "logits+hidden+embedding"}
    given = {
        "verb": "train" if name == "ce" else "distill",
        "student": str(student),
        "teacher": () if name == "ce" else (str(TEACHER),),
        "data": (str(DATA / "stories_train.jsonl"),),
        "eval_data": (str(DATA / "stories_eval.jsonl"),),
        "output": str(output),
        "separator": "bos",
        "from_scratch": name == "scratch",
        "loss": losses.get(name, "logits"),
        "steps": steps,
        "batch": 32,
        "seq_len": 128,
        "lr": 1e-3,
        "warmup": 20,
        "weight_decay": 0.0,
        "eval_every": max(1, steps // 4),
        "seed": seed,
    }
    return resolve(given, None)


def curve(output: Path) -> list[tuple[int, float]]:
    """(step, held-out loss) of every evaluation."""
    return [(line["step"], line["eval_ce"]) for line in read_metrics(output / "run") if "eval_ce" in line]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--only", default=",".join(ARMS))
    args = parse(parser, steps=24, seeds=1, only="kd")
    if not TEACHER.is_dir():
        print(f"skipped: no real checkpoint at {DATA}")
        return
    results: dict[str, list[list[tuple[int, float]]]] = {}
    flops: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as directory:
        students = prune(Path(directory))
        for seed in range(args.seeds):
            for name in args.only.split(","):
                outcome = train(arm(name, students, Path(directory) / f"{name}-{seed}", seed, args.steps))
                flops[name] = outcome.progress.flops
                results.setdefault(name, []).append(curve(outcome.output))
            if {"kd", "ce"} <= flops.keys():
                steps = round(args.steps * flops["kd"] / flops["ce"])
                line = replace(arm("ce", students, Path(directory) / f"more-{seed}", seed, steps), eval_every=steps)
                results.setdefault("ce at kd's FLOPs", []).append(curve(train(line).output))
                flops["ce at kd's FLOPs"] = flops["kd"]
    _print(results, flops)


def _print(results: dict[str, list[list[tuple[int, float]]]], flops: dict[str, float]) -> None:
    print(f"{'':18}{'FLOPs':>10}   nats per token at step")
    for name, curves in results.items():
        cells = []
        for points in zip(*curves):
            centre = mean(loss for _, loss in points)
            spread = max(abs(loss - centre) for _, loss in points)
            cells.append(f"{points[0][0]}: {centre:.3f} ({spread:.3f})")
        print(f"{name:18}{flops[name]:10.2e}   {'  '.join(cells)}")


if __name__ == "__main__":
    main()
