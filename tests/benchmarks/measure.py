"""Peak memory and paired times, for CPU (Linux) and CUDA; the command line that benchmarks share."""

import argparse
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import torch

Run = Callable[[], None]


def parse(parser: argparse.ArgumentParser, **tiny: Any) -> argparse.Namespace:
    """Parse the command line; with `--tiny`, the options of `tiny` are the defaults."""
    parser.add_argument("--tiny", action="store_true", help="the smallest size: to see that it runs, not to measure")
    if parser.parse_known_args()[0].tiny:
        parser.set_defaults(**tiny)
    return parser.parse_args()


def peak_bytes(run: Run, device: torch.device) -> int:
    """Memory the call adds at its highest, over what is held before it. In a fresh process: nothing is warmed up."""
    if device.type == "cuda":
        run()  # workspaces of the libraries stay; they are not the loss's
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    before = reset_peak()
    run()
    return status("VmHWM") - before


def reset_peak() -> int:
    """Bytes that this process has resident; its high-water mark (`status("VmHWM")`) begins again there."""
    Path("/proc/self/clear_refs").write_text("5")
    return status("VmRSS")


def status(key: str) -> int:
    """A figure of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"no {key} in /proc/self/status")


def paired_seconds(
    runs: Mapping[str, Run], rounds: int, device: torch.device, cpu_time: bool = False
) -> dict[str, list[float]]:
    """Seconds of each run in each round, the runs taking turns, so that load from elsewhere meets all of them.

    `cpu_time` counts the seconds this process was running: for a machine whose cores are shared, with one thread (more
    would count their waiting for one another).
    """
    clock = time.process_time if cpu_time else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            _wait(device)
            started = clock()
            run()
            _wait(device)
            if number:  # the first round warms up
                seconds[name].append(clock() - started)
    return seconds


def seconds_of(run: Run, device: torch.device) -> float:
    """Seconds of one call, to its end on the device."""
    _wait(device)
    started = time.perf_counter()
    run()
    _wait(device)
    return time.perf_counter() - started


def paired_ratio(of: list[float], to: list[float]) -> float:
    """Median over the rounds of of / to."""
    return median(a / b for a, b in zip(of, to))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
