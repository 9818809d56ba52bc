"""Run a teacher once over the windows that a training will read, and keep what it says."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from minitron_cli.checkpoint.atomic import check_apart
from minitron_cli.checkpoint.disk import need_space, write_errors
from minitron_cli.checkpoint.provenance import model_digest
from minitron_cli.data.order import Order
from minitron_cli.data.stream import StreamOrder
from minitron_cli.errors import MinitronError
from minitron_cli.hf.devices import choose_device, choose_dtype
from minitron_cli.hf.process_group import World
from minitron_cli.training.cached_logits import store, topk
from minitron_cli.training.cached_logits.store import Header
from minitron_cli.training.head import check_head, head_of
from minitron_cli.training.inputs import paths_read, windows_read
from minitron_cli.training.interrupt import StopFlag, stop_on_signal
from minitron_cli.training.load import load_teacher
from minitron_cli.training.options import Options
from minitron_cli.training.prepare import Prepared, prepare
from minitron_cli.training.progress import Display
from minitron_cli.training.rows import share_of
from minitron_cli.training.student import Taps


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a recording came to; `stopped_by` is the exit code that a signal asks for, 0 when it is finished."""

    path: Path
    tokens: int
    bytes: int
    stopped_by: int = 0


@dataclass(frozen=True, slots=True)
class RecordingPlan:
    """A validated recording: what it is of, and the windows of each token file that the run's steps read."""

    ready: Prepared
    order: Order
    header: Header
    windows: tuple[np.ndarray, ...]
    device: torch.device

    @property
    def num_windows(self) -> int:
        return sum(map(len, self.windows))

    @property
    def num_bytes(self) -> int:
        return self.num_windows * self.header.record().itemsize

    def __str__(self) -> str:
        return (
            f"the top {self.header.top_k} of {self.header.vocab:,} from {self.ready.options.teacher[0]} over "
            f"{self.num_windows:,} windows of {self.header.seq_len} tokens: {self.num_bytes / 1e9:.2f} GB"
        )


def plan_recording(options: Options, path: Path, top_k: int) -> RecordingPlan:
    """Make every check of a recording of `top_k` ids into `path`; nothing is loaded or written there."""
    device = choose_device(options.teacher_device or options.device)
    ready = prepare(options, World(0, 1, device))
    check_apart(path, paths_read(ready.options, ready.models))
    if isinstance(ready.order, StreamOrder):
        raise MinitronError("a stream cannot be recorded", "leave --stream out: the text is then tokenised once")
    if len(ready.models.teachers) != 1:
        raise MinitronError(
            "a recording is of one teacher", "give one --teacher MODEL, and record each into its own directory"
        )
    header = _header(ready, ready.order, top_k)
    assert ready.options.steps is not None
    found = RecordingPlan(ready, ready.order, header, windows_read(ready.order, ready.options.steps), device)
    store.check_place(path, header, found.windows)
    need_space(path, found.num_bytes)
    return found


def _header(ready: Prepared, order: Order, top_k: int) -> Header:
    teacher = ready.models.teachers[0]
    vocab = min(size.shape["vocab"] for size in ready.sizes)
    if not 0 < top_k < vocab:
        raise MinitronError(
            f"--top-k {top_k} does not fit {vocab} ids", f"give 1 to {vocab - 1}; the papers lose below 100"
        )
    return Header(
        teacher=model_digest(teacher),
        tokenizer_hash=order.files[0].header.tokenizer_hash,
        tokens_sha256=tuple(f.header.tokens_sha256 for f in order.files),
        seq_len=order.seq_len,
        top_k=top_k,
        vocab=vocab,
        temperature=ready.options.temperature,
        cross_doc=ready.options.cross_doc,
    )


def record_teacher(
    options: Options, path: Path, top_k: int, say: Callable[[str], None] = lambda text: None
) -> Recorded:
    """Record the teacher of `options` for every window that its steps read; the same line again goes on."""
    plan = plan_recording(options, path, top_k)
    with write_errors(path):
        store.begin(path, plan.header, plan.windows)
        say(f"recording {plan} in {path}")
        with stop_on_signal() as stop:
            done = _record(plan, path, stop)
        if done < plan.num_windows:
            return Recorded(path, done * plan.header.seq_len, plan.num_bytes, stop.exit_code)
        store.finish(path, plan.header)
    return Recorded(path, plan.num_windows * plan.header.seq_len, plan.num_bytes)


def _record(plan: RecordingPlan, path: Path, stop: StopFlag) -> int:
    """Append the records that are missing; returns how many windows there are now."""
    ready, header = plan.ready, plan.header
    dtype = choose_dtype(ready.options.teacher_dtype, plan.device)
    teacher = load_teacher(ready.models.teachers[0], dtype, ready.options.trust_remote_code, plan.device)
    check_head(teacher, "teacher")
    counts = [store.recorded(path, header, i, len(numbers)) for i, numbers in enumerate(plan.windows)]
    display = Display(plan.num_windows, sum(counts))
    began, before = time.perf_counter(), sum(counts)
    try:
        for i, numbers in enumerate(plan.windows):
            with (path / f"top-{i}.bin").open("ab") as stream:
                while counts[i] < len(numbers) and not stop.signal:
                    part = numbers[counts[i] : counts[i] + ready.micro_batch]
                    stream.write(_records(teacher, plan.order, np.full(len(part), i), part, header))
                    counts[i] += len(part)
                    rate = (sum(counts) - before) * header.seq_len / (time.perf_counter() - began)
                    display.step(sum(counts), {}, rate)
    finally:
        display.close()
    return sum(counts)


@torch.no_grad()
def _records(teacher: torch.nn.Module, order: Order, files: np.ndarray, windows: np.ndarray, header: Header) -> bytes:
    """The packed records of window windows[r] of token file files[r]; documents are kept apart as the header says."""
    share = share_of(order.rows_at(files, windows), None if header.cross_doc else order.documents_at(files, windows))
    hidden, _ = Taps(teacher, ()).run(share.ids, share.positions)
    top = topk.record(hidden[:, :-1].flatten(0, 1), head_of(teacher), header.top_k, header.temperature, header.vocab)
    return store.pack(header, top, len(windows))
