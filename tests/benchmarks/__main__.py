"""`python -m tests.benchmarks`: every benchmark, one after the other, each in a process of its own."""

import subprocess
import sys

# What each measures; all print ratios between things measured side by side in one run.
BENCHMARKS = {
    "importance": "one scoring pass against the bare forward passes; layer streaming against resident",
    "loading": "student and teacher onto 1, 2, 4 and 8 ranks: host memory and seconds, by slices and whole",
    "forecast": "the memory that a dry run forecasts against what training takes",
    "saving": "what a checkpoint costs the steps, written between them and behind them",
    "throughput": "whole training steps: tokens a second, share of the peak, memory",
    "prune": "wall time and memory against reading the source once and writing the target once",
    "loss": "the fused loss against naive ones: peak memory and time",
    "step": "the whole distillation step against its bare limit",
    "data": "tokenising and reading rows",
    "decode_speed": "decoding of a half-depth model against its source",
    "stories": "the recipe on a real checkpoint: loss after the cut and after distilling",
    "paired": "distillation against plain training, on the real checkpoint and in one data order",
    "family": "iterating against one cut, rankings of shapes against the ranking that lasts (50 minutes of a core)",
    "mix": "a mix that follows the losses against a fixed one, on the toy world (20 minutes of a core)",
    "cached": "students of a recorded teacher, top k and draws, against the live one's, on the toy world",
    "experts": "half of the experts of a mixture, by every score, dropped or merged (20 minutes of a core)",
    "compensation": "compensated against plain trimming on the real checkpoint",
    "masks": "learned masks against one-shot cuts at equal tokens, on the real checkpoint (an hour of a core)",
    "masked_step": "a training step with learned masks against a plain one",
    "real": "evidence for the defaults on a real model (hours)",
    "peers": "other pruning tools on the same model, cut and data (those that are installed)",
    "vocab": "bits per byte of a real model whose vocabulary is cut",
    "trajectory": "loss and tasks of a real model's cut after 1, 5, 20 and 100% of its distillation",
    "moments": "what input Gram matrices add to the calibration pass, and compensation to the prune, at 1.2B",
}


def main() -> int:
    """Run all of them, or those named on the command line; 0 when all ended well."""
    names = sys.argv[1:] or list(BENCHMARKS)
    failed = []
    for name in names:
        print(f"== {name}: {BENCHMARKS[name]}", flush=True)
        if subprocess.run([sys.executable, "-m", f"tests.benchmarks.{name}"], check=False).returncode:
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}")
    return len(failed) > 0


if __name__ == "__main__":
    sys.exit(main())
