"""Several trainings at once, one a device, each a command line in a process of its own.

A run gives the same result as it would alone, since the command line determines it. On CPUs that is exact to the bit
where it has as many threads as it would have had; the processes share those of this one.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from minitron_cli.errors import MinitronError

Say = Callable[[str], None]
_POLL_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Work:
    """A command line without its device, its name for people, and the file for what it prints."""

    name: str
    words: tuple[str, ...]
    log: Path


@dataclass(slots=True)
class _Running:
    work: Work
    process: subprocess.Popen[bytes]


def parse_devices(text: str | None, device: str = "auto") -> tuple[str, ...]:
    """`cuda:0,cuda:1`, `cpu,cpu` or `all` (every visible GPU); a device that does not exist is an error.

    By default all GPUs where there are several and no single `device` is named; else none: one after the other.
    """
    import torch

    from minitron_cli.hf.devices import choose_device

    if text is None:
        several = device == "auto" and torch.cuda.is_available() and torch.cuda.device_count() > 1
        return parse_devices("all") if several else ()
    names = [part.strip() for part in text.split(",")]
    if names == ["all"]:
        names = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
        if not names:
            raise MinitronError("--devices all: no GPU is visible to torch", "name them: --devices cpu,cpu")
    gpus = [name for name in names if name != "cpu"]
    if twice := sorted({name for name in gpus if gpus.count(name) > 1}):
        raise MinitronError(f"--devices names {', '.join(twice)} twice", "one training a GPU")
    for name in names:
        if name == "auto" or name == "cuda":
            raise MinitronError(f"--devices {text!r}: {name!r} is not one device", "write cuda:0,cuda:1 or cpu,cpu")
        choose_device(name, "--devices")
    return tuple(names)


def run_all(works: Sequence[Work], devices: Sequence[str], say: Say) -> None:
    """Run every command line, as many at a time as there are devices; the first that fails stops the others.

    A stopped training saves its state, and resumes when it is run again.
    """
    import torch

    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()  # leave the memory that this process has cached to them
    waiting, running = list(works), dict[int, _Running]()
    environment = _environment(devices)
    with _stopped_together(running):
        while waiting or running:
            for slot, device in enumerate(devices):
                if waiting and slot not in running:
                    running[slot] = _start(waiting.pop(0), device, environment, say)
            time.sleep(_POLL_SECONDS)
            for slot, current in list(running.items()):
                if current.process.poll() is not None:
                    del running[slot]
                    _check(current)


def _start(work: Work, device: str, environment: dict[str, str], say: Say) -> _Running:
    say(f"{device}: {work.name} (log: {work.log})")
    work.log.parent.mkdir(parents=True, exist_ok=True)
    line = [sys.executable, "-m", "minitron_cli", *work.words, "--device", device]
    with work.log.open("ab") as log:
        return _Running(work, subprocess.Popen(line, env=environment, stdout=log, stderr=log))


def _check(ended: _Running) -> None:
    code = ended.process.returncode
    if code == 0:
        return
    lines = ended.work.log.read_text(errors="replace").splitlines()
    said = [line for line in lines if line.startswith("error: ")] or lines
    why = said[-1].removeprefix("error: ") if said else "its log is empty"
    raise MinitronError(
        f"{ended.work.name} ended with exit code {code}: {why}",
        f"see {ended.work.log}; the same line resumes from there",
    )


def _environment(devices: Sequence[str]) -> dict[str, str]:
    """This process's environment; CPU processes share its threads, unless their number was set by hand."""
    import torch

    share = max(1, torch.get_num_threads() // max(1, devices.count("cpu")))
    return {"OMP_NUM_THREADS": str(share), **os.environ}


@contextmanager
def _stopped_together(running: dict[int, _Running]) -> Iterator[None]:
    """However the block ends, its processes are stopped; SIGTERM ends it as an interruption does."""

    def stop(*_: object) -> None:
        raise SystemExit(143)

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        for current in running.values():
            current.process.terminate()
        for current in running.values():
            current.process.wait()
        signal.signal(signal.SIGTERM, previous)
