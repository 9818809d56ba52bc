"""What the data stage costs over what it can not do without.

    python -m tests.benchmarks.data [--documents 20000] [--workers 1,2]

Tokenising: seconds of `data tokenize` against the tokenizer alone on the same texts in memory, in turns. Reading: the
time of one step's rows from a token file, and of the order alone for a file of 10^9 windows.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from minitron_cli.data.order import Order
from minitron_cli.data.permutation import permute
from minitron_cli.data.prepare import make_job, run_job
from minitron_cli.data.source import parse_sources
from minitron_cli.data.tokenizer import load_tokenizer
from minitron_cli.data.tokens import TokenFile
from tests.benchmarks.measure import parse
from tests.data.corpora import byte_level, documents, write_jsonl

_REPEATS = 3


def seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def tokenising(where: Path, count: int, workers: list[int]) -> tuple[list[str], TokenFile]:
    """Table rows, one per number of workers, and the file that was made."""
    tokenizer = load_tokenizer(byte_level(where / "tokenizer", vocab=2000))
    texts = documents(count)
    source = write_jsonl(where / "corpus.jsonl", texts)
    job = make_job(parse_sources([str(source)]), tokenizer, "auto", None, where / "cache")

    def alone() -> None:
        for start in range(0, len(texts), 1024):
            for row in tokenizer.backend.encode_batch_fast(texts[start : start + 1024], add_special_tokens=False):
                np.array(row.ids, np.uint16)

    times: dict[str, list[float]] = {}
    for repeat in range(_REPEATS):
        times.setdefault("tokenizer alone", []).append(seconds(alone))
        for number in workers:
            out = where / f"tokens-{number}-{repeat}"
            name = f"data tokenize --workers {number}"
            times.setdefault(name, []).append(seconds(partial(run_job, job, out, workers=number)))
    file = TokenFile.open(out)
    floor = statistics.median(times["tokenizer alone"])
    rows = [
        f"{name:32} {statistics.median(found):7.2f} s {file.header.num_tokens / statistics.median(found) / 1e6:7.2f} "
        f"M tokens/s  x{statistics.median(found) / floor:.2f}"
        for name, found in times.items()
    ]
    return rows, file


def reading(file: TokenFile, seq_len: int, batch: int) -> list[str]:
    order = Order((file,), (1.0,), seq_len, batch, seed=0)
    rows = statistics.median(seconds(partial(order.rows, step)) for step in range(50))
    huge = statistics.median(seconds(partial(permute, np.arange(batch), 10**9, step)) for step in range(50))
    return [
        f"rows of a step ({batch} x {seq_len}): {rows * 1e3:.2f} ms",
        f"places of {batch} rows among 10^9 windows: {huge * 1e3:.2f} ms",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=20_000)
    parser.add_argument("--workers", default="1,2", help="numbers of processes to try, comma-separated")
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--batch", type=int, default=64)
    options = parse(parser, documents=200, workers="1", seq_len=32, batch=4)
    with tempfile.TemporaryDirectory() as directory:
        rows, file = tokenising(Path(directory), options.documents, [int(n) for n in options.workers.split(",")])
        print("\n".join([*rows, *reading(file, options.seq_len, options.batch)]))
        print(json.dumps({"tokens": file.header.num_tokens, "bytes": file.header.num_bytes}))


if __name__ == "__main__":
    main()
