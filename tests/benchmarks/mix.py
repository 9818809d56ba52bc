"""A mix that follows the losses against a fixed one: the toy world's four domains, equal tokens, several seeds.

    python -m tests.benchmarks.mix [--seeds 3] [--steps 100] [--every 5] [--rate 2] [--start 0.45,...] [-o FOLDER]

A teacher is trained and cut; the cut model is trained again on the text alone, by `fixed` and by `dynamic` weights that
begin as the same shares (by default those of the toy corpus). References are the teacher's losses. The weights follow
one draw of held-out text; the figures are excess losses over the teacher on another, nats per token. A seed is an order
of the data. With -o what was made before is found again.
"""

import argparse
import json
import random
import tempfile
from pathlib import Path

import numpy as np

from minitron_cli.checkpoint.provenance import read_manifest
from minitron_cli.toy.corpus import SHARES
from minitron_cli.toy.domains import DOMAINS, make_world
from minitron_cli.training.reference_file import read_references
from tests.benchmarks.family import minitron
from tests.benchmarks.measure import parse

NAMES = tuple(DOMAINS)
TRAINING = ["--batch", 16, "--seq-len", 128, "--lr", "2e-3", "--min-lr", "2e-4", "--warmup", 4]
CHARACTERS = {"train": 2_500_000, "follow": 60_000, "judge": 60_000}
WINDOWS = {"follow": 48, "judge": 128}


def write_text(folder: Path, characters: dict[str, int]) -> None:
    """FOLDER/SPLIT/DOMAIN.jsonl: every split another draw from the world of the teacher."""
    world = make_world(0)
    for split, wanted in characters.items():
        (folder / split).mkdir(parents=True, exist_ok=True)
        for name, make in DOMAINS.items():
            rng, lines, written = random.Random(f"mix:{split}:{name}"), [], 0
            while written < wanted:
                text = make(rng, world).text
                lines.append(json.dumps({"text": text}) + "\n")
                written += len(text)
            (folder / split / f"{name}.jsonl").write_text("".join(lines))


def files(folder: Path, split: str, flag: str, weights: tuple[float, ...] | None = None) -> list[object]:
    """The domains of a split as words of a command line."""
    ends = [""] * len(NAMES) if weights is None else [f":{weight:g}" for weight in weights]
    return [word for name, end in zip(NAMES, ends) for word in (flag, f"{folder / split / name}.jsonl{end}")]


def losses(folder: Path, model: Path) -> np.ndarray:
    """Nats per token of a model on the text that judges, by domain."""
    file = folder / f"{model.name}-judged.json"
    if not file.exists():
        minitron("reference-loss", "--source", model, *files(folder, "judge", "--eval-data"), "--seq-len", 128,
                 "--eval-windows", WINDOWS["judge"], "-o", file)  # fmt: skip
    return np.array([domain.loss for domain in read_references(file).domains])


def prepare(folder: Path, teacher_steps: int) -> tuple[Path, Path]:
    """The world, its teacher, the cut model and the references; what is there already is kept."""
    large, cut, scores = folder / "large", folder / "cut", folder / "scores.safetensors"
    if not (folder / "world").exists():
        minitron("toy", folder / "world")
        write_text(folder, CHARACTERS)
    text = ["--data", folder / "world" / "corpus" / "train.jsonl"]
    if read_manifest(large) is None:
        minitron("train", folder / "world" / "teacher-init", "--from-scratch", *text, "--batch", 16, "--seq-len", 128,
                 "--lr", "4e-3", "--min-lr", "4e-4", "--steps", teacher_steps, "-o", large)  # fmt: skip
    if read_manifest(cut) is None:
        minitron("importance", large, *text, "--samples", 1024, "--seq-len", 128, "-o", scores)
        minitron("prune", large, "--scores", scores, "--hidden", 72, "--ffn", 176, "-o", cut)
    references = folder / "references.json"
    if not references.exists():
        minitron("reference-loss", "--source", large, *files(folder, "follow", "--eval-data"), "--seq-len", 128,
                 "--eval-windows", WINDOWS["follow"], "-o", references)  # fmt: skip
    return large, cut


def train(folder: Path, cut: Path, mix: str, start: tuple[float, ...], seed: int, args: argparse.Namespace) -> Path:
    output = folder / f"{mix}-{seed}"
    if read_manifest(output) is None:
        dynamic = ["--mix", "dynamic", "--mix-every", args.every, "--mix-rate", args.rate]
        dynamic += ["--reference-losses", folder / "references.json"]
        minitron("train", cut, *files(folder, "train", "--data", start), *files(folder, "follow", "--eval-data"),
                 *TRAINING, "--eval-windows", WINDOWS["follow"], "--eval-every", args.steps, "--steps", args.steps,
                 "--seed", seed,
                 *(dynamic if mix == "dynamic" else []), "-o", output)  # fmt: skip
    return output


def used(output: Path, start: tuple[float, ...], steps: int) -> np.ndarray:
    """The share of the rows that each domain had."""
    mix = read_manifest(output)["training"].get("mix", [])  # type: ignore[index]
    weights = np.array([np.array(start) / sum(start), *(weights for _, weights in mix)])
    return np.diff([0, *(step for step, _ in mix), steps]) @ weights / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--every", type=int, default=5)
    parser.add_argument("--rate", type=float, default=2.0)
    parser.add_argument("--start", default=",".join(str(share) for share in SHARES.values()))
    parser.add_argument("-o", "--output", type=Path)
    parser.set_defaults(teacher_steps=700)
    args = parse(parser, seeds=1, steps=12, every=4, teacher_steps=20)
    start = tuple(float(share) for share in args.start.split(","))
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.output or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        large, cut = prepare(folder, args.teacher_steps)
        reference = losses(folder, large)
        print(f"{'':12}" + "".join(f"{name:>12}" for name in NAMES) + f"{'largest':>12}{'mean':>12}")
        show("the teacher", reference)
        show("cut", losses(folder, cut) - reference)
        worst: dict[str, list[float]] = {"fixed": [], "dynamic": []}
        for seed in range(args.seeds):
            for mix, found in worst.items():
                output = train(folder, cut, mix, start, seed, args)
                excess = losses(folder, output) - reference
                found.append(float(excess.max()))
                show(f"{mix} {seed}", excess)
                show("  rows", used(output, start, args.steps), summed=False)
        ratios = [dynamic / fixed for fixed, dynamic in zip(*worst.values())]
        print(f"largest excess, dynamic / fixed: {', '.join(f'{ratio:.2f}' for ratio in ratios)}")


def show(name: str, values: np.ndarray, summed: bool = True) -> None:
    ends = [values.max(), values.mean()] if summed else []
    print(f"{name:12}" + "".join(f"{value:12.3f}" for value in (*values, *ends)), flush=True)


if __name__ == "__main__":
    main()
