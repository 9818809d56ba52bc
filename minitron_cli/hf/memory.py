"""Bytes that are free now, on the host (containers included) and on a device. Host memory is read without torch."""

import ctypes
import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

INTERPRETER_BYTES = 400 << 20  # with torch and transformers
# Of cgroup versions 2 and 1: controller, mount, files of limit and usage, the page cache's line in memory.stat.
_VERSIONS = (
    ("", "", "memory.max", "memory.current", "file"),
    ("memory", "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_cache"),
)


def free_memory(device: "torch.device") -> int:
    """Bytes that can be allocated on a device now."""
    import torch

    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return free_host_memory()


HOST_PEAK, DEVICE_PEAK = "peak_memory", "peak_device_memory"  # in the metrics of a run: on one or the other


def peak_memory(device: "torch.device") -> int:
    """Bytes: the most that this process has had allocated on a GPU, or resident on the host."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def give_back() -> None:
    """Return to the system what was freed and the C library keeps for later (glibc): of large tensors that can be as
    much again as is in use, because none of the next fits where one was."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def free_host_memory(root: Path = Path("/")) -> int:
    """Bytes that can be allocated on the host without swapping, within every cgroup limit that holds for this process.

    Page cache counts as free, as in the kernel's MemAvailable. `root` is where proc and sys are mounted.
    """
    stated = [int(line.split()[1]) * 1024 for line in _lines(root / "proc/meminfo") if line.startswith("MemAvailable:")]
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")  # systems without /proc
    return max(0, min([*(stated or [whole]), *_left_in_cgroups(root)]))


def _left_in_cgroups(root: Path) -> Iterator[int]:
    """Bytes left in each cgroup of this process that has a limit, from its own up to the mount (versions 1 and 2)."""
    for controller, mount, limit_file, usage_file, cache in _VERSIONS:
        base = root / "sys/fs/cgroup" / mount
        for directory in _own_and_above(root, controller, base):
            limit, usage = _lines(directory / limit_file), _lines(directory / usage_file)
            if limit and usage and limit[0].isdigit():
                stat = dict(line.split() for line in _lines(directory / "memory.stat") if len(line.split()) == 2)
                yield int(limit[0]) - int(usage[0]) + int(stat.get(cache, 0))


def _own_and_above(root: Path, controller: str, base: Path) -> list[Path]:
    """The cgroup directories of this process; in a container its own one may be the mount itself."""
    entries = [line.split(":", 2) for line in _lines(root / "proc/self/cgroup")]
    paths = [entry[2] for entry in entries if len(entry) == 3 and controller in entry[1].split(",")]
    own = base / paths[0].lstrip("/") if paths else base
    return [own, *(parent for parent in own.parents if parent.is_relative_to(base))]


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
