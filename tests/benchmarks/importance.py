"""What measuring importance costs over the forward passes it rides on, and what streaming costs over residency.

    python -m tests.benchmarks.importance [--shape medium] [--device cuda --dtype bfloat16 --shape llama-8b]
    python -m tests.benchmarks.importance --stream [--shape large | mixtral]

The first compares the recorded pass with the bare decoder forward on the same batches, taking turns (target: 1.10 x),
and the memory it adds at its peak with that of the model and the bare pass (target: 5 %). The second makes a checkpoint
four times larger than the memory a streamed run may have above what torch takes (the kernel enforces it), and times
both ways in processes of their own (target: 1.3 x). On a busy machine: OMP_NUM_THREADS=1 and --cpu-time.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM, PreTrainedModel

from minitron_cli.checkpoint.reader import open_checkpoint
from minitron_cli.hf.devices import DTYPES, choose_device, dtype_name
from minitron_cli.hf.hooks import find_sites
from minitron_cli.hf.load import load_model
from minitron_cli.hf.parts import decoder_of, weight_bytes
from minitron_cli.hf.process_group import World
from minitron_cli.hf.samples import Samples
from minitron_cli.importance import forward, resident, stream
from minitron_cli.importance.execution import Execution
from minitron_cli.importance.recorder import Recorder
from minitron_cli.importance.snapshot import Snapshot
from tests.benchmarks.measure import paired_ratio, paired_seconds, parse, peak_bytes

# (hidden, ffn, layers, heads, kv heads, vocab, experts), and (samples, tokens a sample, batch)
SHAPES = {
    "tiny": ((64, 160, 2, 4, 2, 256, 0), (4, 32, 2)),
    "small": ((512, 1536, 8, 8, 4, 8192, 0), (8, 256, 4)),
    "medium": ((1024, 3072, 6, 16, 4, 16384, 0), (8, 512, 4)),
    "large": ((1024, 4096, 24, 8, 4, 8192, 0), (4, 256, 2)),
    "mixtral": ((1024, 1792, 24, 8, 4, 8192, 8), (16, 256, 4)),
    "llama-8b": ((4096, 14336, 32, 32, 8, 128256, 0), (16, 4096, 4)),
}


def model_of(name: str) -> PreTrainedModel:
    """A random Llama, or Mixtral of that many experts, two to a token."""
    hidden, ffn, layers, heads, kv, vocab, experts = SHAPES[name][0]
    sizes = {
        "vocab_size": vocab, "hidden_size": hidden, "intermediate_size": ffn, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv, "tie_word_embeddings": False, "use_cache": False,
        "max_position_embeddings": 8192,
    }  # fmt: skip
    if experts:
        return MixtralForCausalLM(MixtralConfig(**sizes, num_local_experts=experts))
    return LlamaForCausalLM(LlamaConfig(**sizes))


def make(name: str, dtype: torch.dtype, folder: Path) -> Path:
    """Save a random checkpoint of a shape, layer values drawn in its dtype."""
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    model_of(name).save_pretrained(folder)
    torch.set_default_dtype(torch.float32)
    return folder


def samples_of(name: str) -> Samples:
    count, length, _ = SHAPES[name][1]
    return Samples(np.random.default_rng(0).integers(0, SHAPES[name][0][5], (count, length)))


class Passes:
    """The two passes that are compared, over one model and the same samples; a short one has been recorded before."""

    def __init__(self, path: Path, name: str, device: torch.device, dtype: torch.dtype) -> None:
        self.checkpoint, self.device, self.dtype = open_checkpoint(path), device, dtype
        self.model = load_model(path, dtype, device)
        self.sites = find_sites(self.checkpoint, self.model, device)
        self.batch, self.samples = SHAPES[name][1][2], samples_of(name)
        # Libraries keep workspaces, and Python modules, that are neither's.
        self._record(Samples(self.samples.rows[:1, :8]))

    def bare(self) -> None:
        with torch.inference_mode():
            for one in self.samples.batches(self.batch, self.device):
                forward.forward(decoder_of(self.model), one)

    def recorded(self) -> None:
        self._record(self.samples)

    def _record(self, samples: Samples) -> None:
        forward.run(self.model, self.sites, samples.batches(self.batch, self.device), Recorder(self.sites))


def overhead(name: str, device: torch.device, dtype: torch.dtype, rounds: int, cpu_time: bool) -> dict[str, float]:
    """Ratio of seconds, and bytes that recording adds at its peak over model and bare pass."""
    with tempfile.TemporaryDirectory() as folder:
        passes = Passes(make(name, dtype, Path(folder)), name, device, dtype)
        weights = weight_bytes(passes.model)
        plain, ours = alone("bare", passes, name), alone("recorded", passes, name)
        seconds = paired_seconds({"bare": passes.bare, "recorded": passes.recorded}, rounds, device, cpu_time)
        return {
            "bare_seconds": min(seconds["bare"]),
            "recorded_seconds": min(seconds["recorded"]),
            "time_ratio": paired_ratio(seconds["recorded"], seconds["bare"]),
            "extra_memory": (ours - plain) / (weights + plain),
        }


def alone(which: str, passes: Passes, name: str) -> int:
    """Peak bytes of a pass; on the CPU in a process of its own, because freed memory is not given back for the next.

    The process is a new one: a fork of one in which torch has threads would wait for them forever.
    """
    if passes.device.type == "cuda":
        return peak_bytes(getattr(passes, which), passes.device)
    line = [sys.executable, "-m", "tests.benchmarks.importance", "--child", which, "--shape", name]
    line += ["--model", str(passes.checkpoint.path), "--dtype", dtype_name(passes.dtype)]
    return json.loads(subprocess.run(line, check=True, stdout=subprocess.PIPE).stdout)


def child(mode: str, model: Path, name: str, limit: int) -> None:
    """One pass in this process, with `limit` bytes of private memory above what torch itself takes; prints a line."""
    checkpoint, device = open_checkpoint(model), torch.device("cpu")
    samples, batch = samples_of(name), SHAPES[name][1][2]
    silent = (lambda text: None), (lambda fraction, rate: None)
    job = Execution(checkpoint, samples, device, torch.float32, batch, World(), Snapshot(model / "partial", {}),
              model / "states", *silent)  # fmt: skip
    forward.forward(LlamaForCausalLM(LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=1)).model, next(Samples(np.zeros((1, 4), np.int64)).batches(1, device)))  # fmt: skip
    held = status("VmData")
    if limit:
        resource.setrlimit(resource.RLIMIT_DATA, (held + limit, held + limit))
    began, began_cpu = time.perf_counter(), time.process_time()
    if mode == "stream":
        progress = stream.run(job, on_disk=False)
    else:
        progress = resident.run(job, load_model(model, torch.float32, device))
    seconds, cpu = time.perf_counter() - began, time.process_time() - began_cpu
    total = float(sum(sums.sum() for sums in progress.raw.values()))
    print(json.dumps({"seconds": seconds, "cpu_seconds": cpu, "checksum": total, "data_bytes": status("VmData") - held,
                      "peak_bytes": status("VmHWM")}))  # fmt: skip


def status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def streaming(name: str, rounds: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        model = make(name, torch.float32, Path(folder))
        size = open_checkpoint(model).num_bytes
        limit = max(size // 4, 64 << 20)  # a thread alone takes some megabytes
        found: dict[str, list[dict[str, float]]] = {"resident": [], "stream": []}
        for _ in range(rounds):
            for mode, runs in found.items():
                line = [sys.executable, "-m", "tests.benchmarks.importance", "--child", mode, "--model", str(model)]
                line += ["--shape", name, "--limit", str(limit if mode == "stream" else 0)]
                runs.append(json.loads(subprocess.run(line, check=True, stdout=subprocess.PIPE).stdout))
        assert len({run["checksum"] for runs in found.values() for run in runs}) == 1, "the modes disagree"
        print(f"{name}: {size / 1e6:,.0f} MB of weights; streamed with {limit / 1e6:,.0f} MB allowed, same sums")
        for mode, runs in found.items():
            best = min(runs, key=lambda run: run["seconds"])
            print(f"  {mode:9} {best['seconds']:7.2f} s  {best['cpu_seconds']:7.2f} CPU s  "
                  f"peak {best['peak_bytes'] / 1e6:,.0f} MB resident set")  # fmt: skip
        for clock in ("seconds", "cpu_seconds"):
            ratio = paired_ratio([r[clock] for r in found["stream"]], [r[clock] for r in found["resident"]])
            print(f"  {clock} stream / resident: {ratio:.2f} (target 1.3)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="medium")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cpu-time", action="store_true")
    parser.add_argument("--stream", action="store_true")
    parser.add_argument("--child", choices=["stream", "resident", "bare", "recorded"], help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--limit", type=int, default=0)
    options = parse(parser, shape="tiny", rounds=1)
    if options.child in ("bare", "recorded"):
        passes = Passes(options.model, options.shape, torch.device("cpu"), DTYPES[options.dtype])
        print(peak_bytes(getattr(passes, options.child), passes.device))
        return
    if options.child:
        child(options.child, options.model, options.shape, options.limit)
        return
    if options.stream or options.tiny:
        streaming(options.shape, options.rounds)
    if options.stream:
        return
    device = choose_device(options.device)
    found = overhead(options.shape, device, DTYPES[options.dtype], options.rounds, options.cpu_time)
    print(f"{options.shape} on {device} in {options.dtype}: bare {found['bare_seconds']:.3f} s, "
          f"recorded {found['recorded_seconds']:.3f} s, ratio {found['time_ratio']:.3f} (target 1.10), "
          f"extra peak memory {found['extra_memory']:.1%} (target 5 %)")  # fmt: skip


if __name__ == "__main__":
    main()
