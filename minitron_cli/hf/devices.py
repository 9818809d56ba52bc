"""Which device, and in which type to compute on it."""

import os
import platform
import time
from pathlib import Path
from typing import Final

import torch

from minitron_cli.errors import MinitronError

DTYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_TYPES = ("cpu", "cuda")


def choose_device(name: str, flag: str = "--device") -> torch.device:
    """`auto` is a GPU where there is one, else the CPU. Under torchrun each process takes the GPU of its local rank."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in _TYPES:
        raise MinitronError(f"{flag} {name!r} is not a device", "use auto, cpu, cuda or cuda:N")
    if device.type == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise MinitronError(
            f"{flag} {name}: no GPU is visible to torch", f"use {flag} cpu, or install a CUDA build of torch"
        )
    local = os.environ.get("LOCAL_RANK")
    index = int(local) if local is not None else device.index or 0
    if index >= torch.cuda.device_count():
        raise MinitronError(
            f"{flag} cuda:{index}: {torch.cuda.device_count()} GPUs are visible to torch",
            "use another index, or start at most one process per GPU (--nproc)",
        )
    return torch.device("cuda", index)


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 on a GPU that has it and float32 elsewhere."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
    if name not in DTYPES:
        raise MinitronError(f"--dtype {name!r} is unknown", f"one of auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def dtype_name(dtype: torch.dtype) -> str:
    """`float32` for torch.float32, as flags and files write it."""
    return str(dtype).removeprefix("torch.")


def clock(device: torch.device) -> float:
    """Seconds of a clock, read when everything queued on a device is done; the CPU queues nothing."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def machine_words(device: torch.device) -> str:
    """The device that a speed was measured on: "NVIDIA H100 80GB HBM3", "AMD EPYC 9R14, 2 of 8 cores"."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_processor()}, {torch.get_num_threads()} of {os.cpu_count()} cores"


def _processor() -> str:
    """The model of the host's processor: Linux has it in /proc, other systems tell Python."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(errors="replace").splitlines() if info.is_file() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()
