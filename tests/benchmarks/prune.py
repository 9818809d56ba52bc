"""How fast pruning streams: wall time against the floor of reading the source once and writing the target once.

    python -m tests.benchmarks.prune [--size 1.2b|8b] [--rounds 3] [--warm] [--directory DIR]

Writes a Llama-shaped checkpoint of random bf16 weights, then takes turns: prune, floor, prune, floor. Before each,
dirty pages are written out and the source is dropped from the page cache (`--warm`: read into it). The prune is the
whole command in a process of its own, start-up and hashes included; its peak memory is set against that of an idle
interpreter. The floor reads and writes in blocks through the page cache, and directly, and takes the quicker of each:
direct writing leaves its bytes on the disk, writing to the cache may not. One line of JSON a round, then the medians.
"""

import argparse
import json
import mmap
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from minitron_cli.checkpoint.bits import to_bits
from minitron_cli.checkpoint.reader import open_checkpoint, weight_files
from minitron_cli.checkpoint.scores_file import write_scores
from minitron_cli.checkpoint.writer import TensorOut, header_bytes, reserve, shard_names, shards, write_index
from minitron_cli.families import family_of
from minitron_cli.spec.axes import size
from minitron_cli.spec.scores import Scores, score_shape
from minitron_cli.spec.shape import shape_of
from tests.benchmarks.measure import parse

# Llama-3.2-1B and Llama-3.1-8B, with the width prune of the paper and one of the same proportions.
SHAPES: dict[str, tuple[dict[str, Any], dict[str, int]]] = {
    "tiny": (
        {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4, "num_attention_heads": 4,
         "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 4096, "tie_word_embeddings": True},
        {"hidden": 192, "ffn": 448},
    ),
    "30m": (
        {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 6, "num_attention_heads": 8,
         "num_key_value_heads": 4, "head_dim": 64, "vocab_size": 16000, "tie_word_embeddings": True},
        {"hidden": 384, "ffn": 1024},
    ),
    "0.3b": (
        {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 16, "num_attention_heads": 16,
         "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 64000, "tie_word_embeddings": True},
        {"hidden": 768, "ffn": 2560},
    ),
    "1.2b": (
        {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
         "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128256, "tie_word_embeddings": True},
        {"hidden": 1536, "ffn": 5120},
    ),
    "8b": (
        {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
         "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256, "tie_word_embeddings": False},
        {"hidden": 3072, "ffn": 9216},
    ),
}  # fmt: skip
BLOCK = 8 << 20
SHARD_BYTES = 5 * 10**9


def make_checkpoint(directory: Path, name: str) -> None:
    """Stream a random bf16 checkpoint of this shape to disk: one block of noise, entered at ever new places."""
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "torch_dtype": "bfloat16",
        **SHAPES[name][0],
    }
    family = family_of("llama")
    shape = shape_of(family, config)
    tensors = [
        TensorOut(weight.format(layer=layer), "BF16", tuple(size(dim, shape.sizes) for dim in weight.dims))
        for weight in family.expected(config)
        for layer in (range(shape["layer"]) if weight.name_axes else [0])
    ]
    generator = np.random.default_rng(0)
    noise = to_bits(generator.standard_normal(BLOCK, dtype=np.float32) * np.float32(0.02), "BF16")
    directory.mkdir()
    parts = shards(tensors, SHARD_BYTES)
    for file, part in zip(shard_names(len(parts)), parts):
        with (directory / file).open("wb") as stream:
            stream.write(header_bytes(part))
            for tensor in part:
                _write_noise(stream, noise, tensor.num_bytes // 2, int(generator.integers(BLOCK)))
    write_index(directory, parts)
    (directory / "config.json").write_text(json.dumps(config, indent=2))


def _write_noise(stream: Any, noise: np.ndarray, left: int, at: int) -> None:
    while left:
        piece = noise[at : at + left]
        stream.write(piece.data)
        left, at = left - len(piece), 0


def make_scores(model: Path, file: Path, axes: Sequence[str]) -> None:
    """Random scores: what is kept lies scattered, as it does in earnest."""
    shape = open_checkpoint(model).shape
    generator = np.random.default_rng(1)
    write_scores(file, Scores({axis: generator.random(score_shape(axis, shape)) for axis in axes}))


def settle(files: Sequence[Path], warm: bool) -> None:
    """Write dirty pages out, then bring every source file out of the page cache, or into it."""
    os.sync()
    for file in files:
        with file.open("rb", buffering=0) as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            while warm and stream.readinto(bytearray(BLOCK)):
                pass


@dataclass
class Floor:
    """Seconds that the disk takes for the bare copying, through the page cache and directly."""

    read: dict[str, float] = field(default_factory=dict)
    write: dict[str, float] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Reading the source once, then writing the target once, each in the way that was quicker here."""
        return min(self.read.values()) + min(self.write.values())


def floor(files: Sequence[Path], target: Sequence[int], directory: Path, warm: bool) -> Floor:
    """Time loops that read all files once, and write files of these sizes once; nothing is hashed or kept.

    The same state of the disk and the page cache as before a prune, before each. A file system without direct I/O has
    one way only.
    """
    found = Floor()
    for way, flag in (("cached", 0), ("direct", os.O_DIRECT)):
        settle(files, warm)
        started = time.perf_counter()
        try:
            _read_once(files, flag)
        except OSError:
            continue
        found.read[way] = time.perf_counter() - started
        directory.mkdir()
        settle((), warm)
        started = time.perf_counter()
        _write_once(directory, target, flag)
        found.write[way] = time.perf_counter() - started
        shutil.rmtree(directory)
    return found


def _read_once(files: Sequence[Path], flag: int) -> None:
    buffer = mmap.mmap(-1, BLOCK)  # begins at a page
    for file in files:
        descriptor = os.open(file, os.O_RDONLY | flag)
        while os.readv(descriptor, [buffer]):
            pass
        os.close(descriptor)


def _write_once(directory: Path, sizes: Sequence[int], flag: int) -> None:
    buffer = mmap.mmap(-1, BLOCK)
    buffer[:] = os.urandom(BLOCK)
    for number, left in enumerate(sizes):
        descriptor = os.open(directory / str(number), os.O_WRONLY | os.O_CREAT | flag)
        reserve(descriptor, left)  # as the prune does; without it the floor is higher
        left = -(-left // mmap.PAGESIZE) * mmap.PAGESIZE  # direct writing takes whole pages
        while left:
            left -= os.write(descriptor, memoryview(buffer)[:left])
        os.close(descriptor)


# A process begins with the peak of the one that starts it, so a small one stands between.
LAUNCHER = """
import resource, subprocess, sys, time
from tests.benchmarks.measure import parse
started = time.perf_counter()
status = subprocess.call(sys.argv[1:], stdout=subprocess.DEVNULL)
seconds, usage = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
print(seconds, usage.ru_maxrss * 1024, usage.ru_utime + usage.ru_stime)
sys.exit(status)
"""


def timed(command: Sequence[str]) -> tuple[float, int, float]:
    """Run a command: (seconds, peak resident bytes of its largest process, processor seconds of all)."""
    found = subprocess.run([sys.executable, "-c", LAUNCHER, *command], stdout=subprocess.PIPE, text=True, check=True)
    seconds, peak, processor = found.stdout.split()
    return float(seconds), int(peak), float(processor)


def rounds(work: Path, name: str, count: int, warm: bool) -> Iterator[dict[str, float]]:
    """One row of figures a round; floor and prune take turns, so that load from elsewhere meets both."""
    source, output, scores = work / "source", work / "small", work / "scores.safetensors"
    target = SHAPES[name][1]
    make_checkpoint(source, name)
    make_scores(source, scores, list(target))
    files = weight_files(source)
    command = [sys.executable, "-m", "minitron_cli", "prune", str(source), "-o", str(output)]
    command += ["--scores", str(scores), "--force", *(f"--{axis}={value}" for axis, value in target.items())]
    idle = timed([sys.executable, "-c", "pass"])[1]
    written = []
    for _ in range(count + 1):
        settle(files, warm)
        seconds, peak, processor = timed(command)
        first, written = not written, [file.stat().st_size for file in weight_files(output)]
        shutil.rmtree(output)
        if first:
            continue  # the first prune says how much the floor has to write
        bare = floor(files, written, work / "floor", warm)
        moved = sum(file.stat().st_size for file in files) + sum(written)
        yield {
            "seconds": seconds,
            "floor_seconds": bare.seconds,
            **{f"floor_read_{way}_seconds": value for way, value in bare.read.items()},
            **{f"floor_write_{way}_seconds": value for way, value in bare.write.items()},
            "ratio": seconds / bare.seconds,
            "processor_seconds": processor,
            "mb_per_second": moved / seconds / 1e6,
            "gb_read": (moved - sum(written)) / 1e9,
            "gb_written": sum(written) / 1e9,
            "peak_mb_above_interpreter": (peak - idle) / 1e6,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SHAPES, default="1.2b")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--warm", action="store_true", help="source in the page cache")
    parser.add_argument("--directory", type=Path, help="where to work [default: a temporary directory]")
    options = parse(parser, size="tiny", rounds=1)
    with tempfile.TemporaryDirectory(dir=options.directory) as work:
        found = []
        for row in rounds(Path(work), options.size, options.rounds, options.warm):
            found.append(row)
            print(json.dumps({key: round(value, 3) for key, value in row.items()}), flush=True)
    print(json.dumps({f"median_{key}": round(median(row[key] for row in found), 3) for key in found[0]}))


if __name__ == "__main__":
    main()
