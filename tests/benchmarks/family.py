"""The papers' claims at toy scale, over several seeds: iterate or cut once? trust the size, or search for the shape?

    python -m tests.benchmarks.family [--seeds 3] [--scale 1.0] [-o RUN]

    iterated   large -> middle -> small, as recipes/tiny.yaml does
    direct     large -> small in one cut, distilled on as many tokens as both steps of `iterated` together
    largest    the largest candidate inside the budget of `small` that the search lists, distilled like the next
    searched   the candidate that the search ranks first, on the same tokens

A row is the mean held-out loss in nats per token over the seeds (of data order) and, in brackets, the largest distance
of a seed from it. The teacher is trained once. `--scale 0.1` makes everything ten times shorter.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean

STEPS = {"large": 700, "middle": 200, "small": 250}
TRAINING = ["--batch", "16", "--seq-len", "128", "--lr", "2e-3", "--min-lr", "2e-4", "--warmup", "4"]
GRID = ["--grid", "hidden=72:120:16", "--grid", "ffn=112:352:48", "--grid", "layers=3:5"]


def minitron(*words: object) -> str:
    """Run one command line and return its stdout."""
    line = [sys.executable, "-m", "minitron_cli", *map(str, words)]
    return subprocess.run(line, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout


def distill(student: Path, run: Path, steps: int, seed: int, output: Path) -> Path:
    """Distill `student` from the large model, unless that was done before."""
    text = ["--data", run / "world" / "corpus" / "train.jsonl"]
    minitron(
        "distill", student, "--teacher", run / "large", *text, "--steps", steps, *TRAINING, "--seed", seed, "-o", output
    )
    return output


def iterated(run: Path, seed: int, steps: dict[str, int]) -> Path:
    """The small model of tiny.yaml, with this seed for both distillations."""
    settings = [f"{name}.steps={count}" for name, count in steps.items()]
    settings += [f"{name}.warmup=4" for name in steps] + [f"middle.seed={seed}", f"small.seed={seed}"]
    words = [word for setting in settings for word in ("--set", setting)]
    minitron("run", "tiny", *words, "--until", "small", "-o", run)
    kept = run.parent / f"iterated-{seed}"
    (run / "small").rename(kept)
    return kept


def search(run: Path, folder: Path, budget: int) -> dict[str, str]:
    """{"largest": shape, "searched": shape} of the candidates inside 5% of `budget` parameters."""
    world = run / "world" / "corpus"
    found = json.loads(minitron(
        "search", run / "large", "--params", budget, *GRID, "--scores", run / "scores-large.safetensors",
        "--data", world / "train.jsonl", "--eval-data", world / "valid.jsonl", "--eval-windows", 64,
        "--refine", 3, "--refine-tokens", "100K", "--batch", 16, "--lr", "2e-3", "-o", folder / "search", "--json",
    ))["candidates"]  # fmt: skip
    return {"largest": max(found, key=lambda c: c["parameters"])["shape"], "searched": found[0]["shape"]}


def cut(run: Path, shape: dict[str, int], output: Path) -> Path:
    """The large model cut to hidden, ffn and layers of `shape`."""
    sizes = ["--hidden", shape["hidden"], "--ffn", shape["ffn"], "--layers", shape["layer"]]
    minitron("prune", run / "large", "--scores", run / "scores-large.safetensors", *sizes, "-o", output)
    return output


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0)
    arguments = parser.parse_args()
    steps = {name: max(8, round(count * arguments.scale)) for name, count in STEPS.items()}
    both = steps["middle"] + steps["small"]
    with tempfile.TemporaryDirectory() as name:
        folder, run = Path(name), Path(name) / "run"
        made: dict[str, list[Path]] = {"iterated": [iterated(run, seed, steps) for seed in range(arguments.seeds)]}
        small = json.loads(minitron("inspect", made["iterated"][0], "--json"))
        shapes = {"direct": small["shape"], **search(run, folder, small["parameters"])}
        for arm, shape in shapes.items():
            student = cut(run, shape, folder / f"{arm}-cut")
            made[arm] = [distill(student, run, both, s, folder / f"{arm}-{s}") for s in range(arguments.seeds)]
        report(run, made)


def report(run: Path, made: dict[str, list[Path]]) -> None:
    """Evaluate everything side by side on the held-out text and print one row per arm."""
    models = [path for paths in made.values() for path in paths]
    found = json.loads(minitron("eval", *models, "--data", run / "world" / "corpus" / "valid.jsonl", "--json"))
    losses = {model["path"]: model["loss"] for model in found["models"]}
    sizes = {model["path"]: model["parameters"] for model in found["models"]}
    print(f"{'arm':<12}{'parameters':>12}{'nats per token':>24}")
    for arm, paths in made.items():
        values = [losses[str(path)] for path in paths]
        spread = max(abs(value - mean(values)) for value in values)
        print(f"{arm:<12}{sizes[str(paths[0])]:>12,}{mean(values):>14.4f} (+-{spread:.4f})")


if __name__ == "__main__":
    main()
