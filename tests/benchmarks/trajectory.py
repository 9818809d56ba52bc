"""What tokens of distillation buy a cut of a real model, on the way: loss and tasks of the source, the cut, the student
after 1, 5, 20 and 100% of the tokens.

    python -m tests.benchmarks.trajectory --model DIR [--text DIR] [--tasks DIR] [--tokens 50M] [--ffn 0.75]
        [--batch 64] [--seq-len 512] [--device cuda] [--work DIR] [--tiny]

Neurons are cut to a share of the source's by activations; the text directory holds `{domain}_train.jsonl` and
`{domain}_eval.jsonl`. Bits per byte of the held-out text and, with --tasks, lm-eval's scores with their standard
errors; every step is a command line of `minitron`, and with WORK a second call goes on.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from minitron_cli.cli.common import parse_count
from minitron_cli.hf.memory import DEVICE_PEAK, HOST_PEAK
from minitron_cli.training.metrics import read_metrics
from tests.benchmarks.measure import parse
from tests.benchmarks.vocab import add_inputs, minitron, toy

EXPORTS = "1%,5%,20%"
TASKS = "real_arc_easy,real_lambada"


def trajectory(args: argparse.Namespace, model: Path, text: Path, work: Path) -> None:
    """Cut, distil, evaluate; prints a table."""
    held_out, device = sorted(text.glob("*_eval.jsonl")), ("--device", args.device)
    data = [word for file in sorted(text.glob("*_train.jsonl")) for word in ("--data", file)]
    config = json.loads((model / "config.json").read_text())
    cut, out = work / "cut", work / "distilled"
    if not cut.is_dir():
        scores = work / "scores.safetensors"
        minitron(
            "importance", model, *data, "--samples", args.samples, "--seq-len", args.seq_len, *device, "-o", scores
        )
        minitron("prune", model, "--ffn", round(config["intermediate_size"] * args.ffn), "--scores", scores, "-o", cut)
    minitron("distill", cut, "--teacher", model, *data, "--tokens", args.tokens, "--batch", args.batch, "--seq-len",
             args.seq_len, "--lr", args.lr, "--export-at", EXPORTS, *device, "-o", out)  # fmt: skip
    exported = sorted((out / "run" / "exported").iterdir(), key=lambda step: int(step.name.rpartition("-")[2]))
    models = [model, cut, *exported, out]
    words: list[Any] = [*models, *(word for file in held_out for word in ("--data", file)), "--windows", args.windows]
    if args.tasks.is_dir() and not args.tiny:
        words += ["--tasks", TASKS, "--include", args.tasks, "--limit", args.limit]
    found = json.loads(minitron("eval", *words, "--seq-len", args.seq_len, "--no-throughput", *device, "--json"))
    lines = [line for line in read_metrics(out / "run") if "tokens_per_second" in line]
    rates = sorted(line["tokens_per_second"] for line in lines)
    peak = max(line.get(DEVICE_PEAK) or line[HOST_PEAK] for line in lines)
    print(f"{rates[len(rates) // 2]:,.0f} tokens a second, peak {peak / 1e9:.1f} GB")
    tokens_of = {line["step"]: line["tokens"] for line in read_metrics(out / "run") if "tokens" in line}
    last = tokens_of[max(tokens_of)]
    names = ["source", "cut"]
    names += [f"{last * int(step.name.rpartition('-')[2]) / max(tokens_of):,.0f} tokens" for step in exported]
    names += [f"{last:,} tokens"]
    for place, (name, one) in enumerate(zip(names, found["models"])):
        scores_of = [row for row in found["rows"] if row["model"] == one["name"]]
        shown = "  ".join(f"{row['task']} {row['value']:.3f}" + _error(row) for row in scores_of)
        print(f"{place} {name:>20}  {one['bits_per_byte']:.4f} bits per byte  {shown}")


def _error(row: dict[str, Any]) -> str:
    return f" +-{row['stderr']:.3f}" if row["stderr"] is not None else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_inputs(parser)
    parser.add_argument("--tokens", type=parse_count, default=50_000_000)
    parser.add_argument("--ffn", type=float, default=0.75)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--lr", default="5e-4")
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--limit", type=int, default=600)
    parser.add_argument("--device", default="cpu")
    args = parse(parser, tokens=12_800, batch=2, seq_len=32, samples=8, windows=4)
    with tempfile.TemporaryDirectory() as temporary:
        work = args.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        if args.tiny or args.model is None or not args.text.is_dir():
            if not args.tiny:
                print("no --model, or no text: the toy instead")
                args.tokens, args.batch, args.seq_len, args.samples, args.windows, args.tiny = 12_800, 2, 32, 8, 4, True
            os.environ["OMP_NUM_THREADS"] = "1"
            trajectory(args, *toy(work), work)
            return
        trajectory(args, args.model, args.text, work)


if __name__ == "__main__":
    main()
