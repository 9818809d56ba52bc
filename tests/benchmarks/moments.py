"""What compensation costs: input Gram matrices as a share of the calibration pass, the solving as a share of the prune.

    python -m tests.benchmarks.moments [--size 1.2b] [--samples 16] [--seq-len 512] [--directory DIR] [--tiny]
    python -m tests.benchmarks.moments --layer [--width 14336 --kept 9216 --hidden 4096 --layers 32]

The first writes a Llama-shaped checkpoint of random bf16 weights and runs the commands as they are typed, each in a
process of its own: `importance` without and with --second-moments, then `prune` to one width, plain, compensated and
rotated. One line each: seconds, processor seconds, peak memory above an idle interpreter, and the ratio to the plain
one. The second solves the MLP of one layer of Llama-3.1-8B from a random Gram matrix, and multiplies by the layers.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.measure import parse
from tests.benchmarks.prune import SHAPES, make_checkpoint, timed
from tests.toys import toy_tokenizer


def make_text(file: Path, samples: int, seq_len: int) -> None:
    """Random lower-case text, enough for this many windows of a tokenizer of characters."""
    letters = np.random.default_rng(0).integers(97, 123, (samples, 2 * seq_len), dtype=np.uint8)
    file.write_text("".join(json.dumps({"text": bytes(row).decode()}) + "\n" for row in letters))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SHAPES, default="1.2b")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--directory", type=Path, help="where to work [default: a temporary directory]")
    parser.add_argument("--layer", action="store_true", help="solve one layer's MLP alone")
    parser.add_argument("--width", type=int, default=14336)
    parser.add_argument("--kept", type=int, default=9216)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--layers", type=int, default=32)
    options = parse(parser, size="tiny", samples=2, seq_len=64, width=128, kept=64, hidden=64, layers=2)
    if options.layer:
        one_layer(options.width, options.kept, options.hidden, options.layers)
        return
    with tempfile.TemporaryDirectory(dir=options.directory) as name:
        work = Path(name)
        source, text = work / "source", work / "text.jsonl"
        make_checkpoint(source, options.size)
        toy_tokenizer(97).save_pretrained(source)
        make_text(text, options.samples, options.seq_len)
        idle = timed([sys.executable, "-c", "pass"])[1]
        minitron = [sys.executable, "-m", "minitron_cli"]
        measure = [*minitron, "importance", str(source), "--data", str(text), "--dtype", "bfloat16", "--samples",
                   str(options.samples), "--seq-len", str(options.seq_len)]  # fmt: skip
        scores = work / "moments.safetensors"
        show_all({
            "importance": [*measure, "-o", str(work / "plain.safetensors")],
            "with Gram matrices": [*measure, "--second-moments", "-o", str(scores)],
        }, idle)  # fmt: skip
        sizes = [word for axis, size in SHAPES[options.size][1].items() for word in (f"--{axis}", str(size))]
        cut = [*minitron, "prune", str(source), "--scores", str(scores), *sizes]
        folded = [*cut, "--compensate", "least-squares"]
        show_all({
            "prune": [*cut, "-o", str(work / "cut")],
            "compensated": [*folded, "-o", str(work / "folded")],
            "neurons by residual": [*folded, "--select", "residual", "-o", str(work / "residual")],
            "and rotated": [*folded, "--select", "residual", "--rotate", "-o", str(work / "rotated")],
        }, idle)  # fmt: skip


def one_layer(width: int, kept: int, hidden: int, layers: int) -> None:
    """Seconds and processor seconds of what compensation with `--select residual` solves for one MLP."""
    import torch

    from minitron_cli.importance.second_moments import _add_gram
    from minitron_cli.prune.compensate import RIDGE, regression
    from minitron_cli.prune.select import eliminate

    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(4096, width, generator=generator).relu_()
    weight = torch.randn(hidden, width, generator=generator).numpy()
    sums = torch.zeros(width, width)
    total = [0.0, 0.0]

    def timed_step(name: str, step: Callable[[], Any], counts: bool = True) -> Any:
        began, processor = time.perf_counter(), time.process_time()
        result = step()
        took = time.perf_counter() - began, time.process_time() - processor
        total[:] = [before + more * counts for before, more in zip(total, took)]
        print(f"{name:<34}{took[0]:8.1f} s{took[1]:9.1f} CPU s", flush=True)
        return result

    timed_step("Gram matrix of 4,096 tokens", lambda: _add_gram(sums, tokens), counts=False)
    gram = (sums.triu() + sums.triu(1).T).double().numpy() / len(tokens)
    stay = timed_step("neurons by residual", lambda: eliminate(weight, gram, kept, RIDGE))
    gone = np.setdiff1d(np.arange(width), stay)
    solved = timed_step("regression", lambda: regression(gram, stay, gone, RIDGE))
    timed_step("down projection", lambda: weight[:, gone] @ solved.astype(np.float32))
    cores = torch.get_num_threads()
    print(f"{layers} layers on {cores} threads: {layers * total[0]:.0f} s, {layers * total[1]:.0f} CPU s")


def show_all(commands: dict[str, list[str]], idle: int) -> None:
    """Run the commands one after the other; ratios are to the first."""
    plain = 0.0
    for name, command in commands.items():
        seconds, peak, processor = timed(command)
        plain = plain or seconds
        memory = (peak - idle) / 1e6
        print(f"{name:<22}{seconds:8.1f} s{processor:9.1f} CPU s{memory:9,.0f} MB{seconds / plain:8.2f} x", flush=True)


if __name__ == "__main__":
    main()
