"""What a student loses by learning from a record of its teacher: top k, draws, and the live teacher, at equal steps.

    python -m tests.benchmarks.cached [--seeds 2] [--steps 150] [--teacher-steps 700] [-o FOLDER]

The toy world's large model is trained and cut (hidden 128 -> 72, FFN 352 -> 176). The cut model is distilled towards it
live, from its top 4, 16 and 64 of 542 ids with a bucket for the rest, and from 16 and 64 draws a token. Bytes are those
on disk a token. Figures are of the validation text, by transformers: nats per token, and the full divergence
KL(teacher || student), whose training value a bucketed teacher bounds from below. A seed is an order of the data; a
figure is the mean over the seeds and, in brackets, the largest distance of one from it. With -o what was made before is
found again.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from minitron_cli.checkpoint.provenance import read_manifest
from minitron_cli.data.prepare import token_files
from minitron_cli.data.source import parse_sources
from tests.benchmarks.family import FROM_SCRATCH, SMALL, TRAINING, minitron
from tests.benchmarks.measure import parse

ARMS: dict[str, list[object] | None] = {
    "live": None,
    "top 4": ["--top-k", 4],
    "top 16": ["--top-k", 16],
    "top 64": ["--top-k", 64],
    "16 draws": ["--record", "sampled:16"],
    "64 draws": ["--record", "sampled:64"],
}


def prepare(folder: Path, teacher_steps: int) -> tuple[Path, Path]:
    """The teacher and the cut model; what is there already is kept."""
    large, cut, world = folder / "large", folder / "cut", folder / "world"
    if not world.exists():
        minitron("toy", world)
    text = ["--data", world / "corpus" / "train.jsonl"]
    if read_manifest(large) is None:
        minitron("train", world / "teacher-init", "--from-scratch", *text, *FROM_SCRATCH, "--steps", teacher_steps,
                 "-o", large)  # fmt: skip
    if read_manifest(cut) is None:
        sizes = [word for name, size in SMALL.items() for word in (f"--{name}", size)]
        minitron("prune", large, *sizes, *text, "--samples", 256, "--seq-len", 128, "-o", cut)
    return large, cut


def distilled(folder: Path, arm: str, seed: int, steps: int) -> tuple[Path, float]:
    """The student of an arm, and the bytes that a token of its teacher takes."""
    output = folder / f"{arm.replace(' ', '-')}-{seed}"
    line = ["distill", folder / "cut", "--data", folder / "world" / "corpus" / "train.jsonl", *TRAINING]
    line += ["--steps", steps, "--seed", seed, "--loss", "logits", "--teacher"]
    teacher, said = folder / "large", output.with_suffix(".teacher")
    if (how := ARMS[arm]) is not None:
        minitron(*line, teacher, *how, "--record-teacher", said)
        teacher = said
    if read_manifest(output) is None:
        minitron(*line, teacher, "-o", output)
    files = [*said.glob("top-*.bin"), *said.glob("drawn-*.bin")]
    windows = sum(len(np.load(file)) for file in said.glob("windows-*.npy"))
    return output, sum(file.stat().st_size for file in files) / max(1, windows * 128)


@torch.no_grad()
def figures(large: Path, student: Path, valid: Path, windows: int) -> tuple[float, float]:
    """Nats per token, and KL(teacher || student), over the first windows of 128 tokens."""
    (file,) = token_files(parse_sources((str(valid),)), large)
    rows = torch.from_numpy(file.windows(np.arange(min(windows, file.num_windows(128))), 128))
    teacher, model = (AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32) for path in (large, student))
    losses, divergences = [], []
    for part in rows.split(16):
        log_p = model(part).logits[:, :-1].log_softmax(-1)
        log_q = teacher(part).logits[:, :-1].log_softmax(-1)
        losses.append(-log_p.gather(-1, part[:, 1:, None]).flatten())
        divergences.append((log_q.exp() * (log_q - log_p)).sum(-1).flatten())
    return float(torch.cat(losses).mean()), float(torch.cat(divergences).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--teacher-steps", type=int, default=700)
    parser.add_argument("--windows", type=int, default=128)
    parser.add_argument("-o", "--output", type=Path)
    args = parse(parser, seeds=1, steps=12, teacher_steps=12, windows=8)
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.output or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        large, cut = prepare(folder, args.teacher_steps)
        valid = folder / "world" / "corpus" / "valid.jsonl"
        print(f"{'':10}{'bytes a token':>14}{'nats per token':>22}{'KL to the teacher':>22}")
        for name, model in (("teacher", large), ("cut", cut)):
            show(name, None, np.array([figures(large, model, valid, args.windows)]))
        for arm in ARMS:
            made = [distilled(folder, arm, seed, args.steps) for seed in range(args.seeds)]
            found = np.array([figures(large, model, valid, args.windows) for model, _ in made])
            show(arm, float(np.mean([size for _, size in made])) if ARMS[arm] else None, found)


def show(name: str, size: float | None, found: np.ndarray) -> None:
    """One line: found (seed, figure)."""
    cells = [f"{m:.4f} ({s:.4f})" for m, s in zip(found.mean(0), np.abs(found - found.mean(0)).max(0))]
    stored = "-" if size is None else f"{size:.1f}"
    print(f"{name:10}{stored:>14}" + "".join(f"{cell:>22}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
