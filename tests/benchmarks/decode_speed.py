"""`python -m tests.benchmarks.decode_speed`: does half the depth decode at least 1.4 times as fast, repeatably?

Two random Llamas that differ in depth only, timed by `minitron bench`'s own interleaved rounds, twice.
"""

import argparse
import tempfile
from pathlib import Path

from minitron_cli.evaluate.bench import measure, parse_grid
from minitron_cli.evaluate.engines import make_subjects
from tests.benchmarks.measure import parse
from tests.toys import make_toy

SHAPE = {
    "hidden_size": 192,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 512,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--device", default="cpu")
    options = parse(parser, layers=4, repeats=1)
    with tempfile.TemporaryDirectory() as directory:
        depths = (options.layers, options.layers // 2)
        paths = [
            make_toy("llama", Path(directory) / f"layers-{depth}", num_hidden_layers=depth, **SHAPE) for depth in depths
        ]
        models = make_subjects("hf", paths, [path.name for path in paths], device=options.device, dtype="float32")
        runs = [
            measure(models, parse_grid("32x48", "1"), repeats=options.repeats, warmup=2, say=lambda text: None)
            for _ in range(2)
        ]
    for rows in runs:
        for row in rows:
            speed = row["decode_tokens_per_second"]
            ratio = row["ratios"]["decode_tokens_per_second"]
            print(f"{row['model']:10} decode {speed['median']:8.1f} tokens/s ±{speed['spread'] / 2:.0%}  {ratio:.2f}x")
    medians = [rows[1]["ratios"]["decode_tokens_per_second"] for rows in runs]
    drift = abs(medians[0] - medians[1]) / medians[0]
    print(f"half depth: {min(medians):.2f}x (wanted 1.40x); the two runs differ by {drift:.1%} (wanted at most 15%)")
    raise SystemExit(0 if options.tiny or (min(medians) >= 1.4 and drift <= 0.15) else 1)


if __name__ == "__main__":
    main()
