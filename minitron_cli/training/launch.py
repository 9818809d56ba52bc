"""Several processes on this machine: start them, pass signals on to them, and say once what went wrong.

A worker does not print why it fails: it writes a report. When one fails, the others fail too, in the middle of an
exchange with it; of all reports only the cause is shown.
"""

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any

from minitron_cli.errors import MinitronError

_REPORTS = "MINITRON_WORKER_REPORTS"  # environment: the directory of the reports
_GRACE_SECONDS = 60.0  # for the other processes to end by themselves after one has failed
_PR_SET_PDEATHSIG = 1


def launch_workers(nproc: int, arguments: Sequence[str]) -> int:
    """Run a minitron command line in `nproc` processes; returns its exit code. Raises what a worker has refused.

    SIGINT and SIGTERM are passed on; the workers save and stop by themselves (see interrupt.py).
    """
    import torch.distributed as dist

    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with TemporaryDirectory(prefix="minitron-") as reports:
        shared = {
            "WORLD_SIZE": str(nproc), "LOCAL_WORLD_SIZE": str(nproc), "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0",
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"), _REPORTS: reports,
        }  # fmt: skip
        command = [sys.executable, "-m", "minitron_cli", *arguments]
        workers = [
            subprocess.Popen(command, env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)})
            for rank in range(nproc)
        ]
        with _passing_signals_on(workers) as passed_on:
            codes = _wait(workers)
        return outcome(codes, _read(Path(reports)), passed_on)


def is_worker() -> bool:
    """Whether this process is one of several, started here or by torchrun."""
    return "WORLD_SIZE" in os.environ


@contextmanager
def reporting() -> Iterator[None]:
    """In a worker that `launch_workers` has started: stop with it, and report an exception instead of printing it."""
    if _REPORTS not in os.environ:
        yield
        return
    with contextlib.suppress(OSError, AttributeError):  # only Linux has it
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    try:
        yield
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except Exception as error:  # noqa: BLE001 - the parent shows it
        report: dict[str, Any] = {"time": time.time(), "traceback": traceback.format_exc()}
        if isinstance(error, MinitronError):
            report |= {"message": error.message, "hint": error.hint}
        rank = int(os.environ["RANK"])
        Path(os.environ[_REPORTS], f"{rank}.json").write_text(json.dumps(report))
        raise SystemExit(1) from None


def outcome(codes: Sequence[int], reports: Mapping[int, Mapping[str, Any]], passed_on: Sequence[int] = ()) -> int:
    """The exit code of all workers from each one's (negative: killed by that signal) and from what they report.

    What was refused is raised, each refusal once; a bug's traceback is printed, the earliest one.
    """
    refused = {(r["message"], r["hint"]): None for _, r in sorted(reports.items()) if "message" in r}
    if refused:
        hints = {hint: None for _, hint in refused if hint}
        raise MinitronError("; ".join(message for message, _ in refused), "; ".join(hints))
    if passed_on and any(codes):
        return 128 + passed_on[0]
    killed = [f"{rank} ({signal.Signals(-code).name})" for rank, code in enumerate(codes) if code < 0]
    if (killed and len(killed) < len(codes)) or (killed and not reports):
        raise MinitronError(
            f"of {len(codes)} processes, the system or a user has killed {', '.join(killed)}",
            "SIGKILL often means that memory ran out: lower --micro-batch; the last checkpoint is kept",
        )
    if reports:
        rank, first = min(reports.items(), key=lambda item: item[1]["time"])
        print(f"process {rank} of {len(codes)} failed first:\n{first['traceback']}", file=sys.stderr)
    return max(abs(code) for code in codes)


@contextmanager
def _passing_signals_on(workers: Sequence["subprocess.Popen[bytes]"]) -> Iterator[list[int]]:
    """Send the workers every SIGINT and SIGTERM that comes; yields the list of them."""
    passed_on: list[int] = []

    def receive(number: int, frame: FrameType | None) -> None:
        passed_on.append(number)
        for worker in workers:
            worker.send_signal(number)

    before = {number: signal.signal(number, receive) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield passed_on
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(workers: Sequence["subprocess.Popen[bytes]"]) -> list[int]:
    """The workers' exit codes. After a failure, those that do not end by themselves are killed (and count as 0)."""
    deadline, hanging = None, set()
    while any(worker.poll() is None for worker in workers):
        if deadline is None and any(worker.returncode for worker in workers):
            deadline = time.monotonic() + _GRACE_SECONDS
        if deadline is not None and time.monotonic() > deadline:
            for worker in (w for w in workers if w.poll() is None):
                hanging.add(worker.pid)
                worker.kill()
                worker.wait()
        time.sleep(0.05)
    return [0 if worker.pid in hanging else worker.returncode for worker in workers]


def _read(directory: Path) -> dict[int, dict[str, Any]]:
    return {int(file.stem): json.loads(file.read_text()) for file in directory.glob("*.json")}
