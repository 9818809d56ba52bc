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
from minitron_cli.checkpoint.reader import load_config
from minitron_cli.data.order import Order
from minitron_cli.data.stream import StreamOrder
from minitron_cli.errors import MinitronError
from minitron_cli.training.cached_logits import store, topk
from minitron_cli.training.cached_logits.store import Header
from minitron_cli.training.distributed import World, choose_device
from minitron_cli.training.head import check_head, head_of
from minitron_cli.training.inputs import paths_read, windows_read
from minitron_cli.training.interrupt import StopFlag, stop_on_signal
from minitron_cli.training.load import compute_dtype, load_teacher
from minitron_cli.training.options import Options
from minitron_cli.training.prepare import Prepared, prepare
from minitron_cli.training.progress import Display
from minitron_cli.training.student import backbone_of


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a recording came to; `stopped_by` is the exit code that a signal asks for, 0 when it is finished."""

    path: Path
    tokens: int
    bytes: int
    stopped_by: int = 0


def record_teacher(
    options: Options, path: Path, top_k: int, say: Callable[[str], None] = lambda text: None
) -> Recorded:
    """Record the teacher of `options` for every window that its steps read; the same line again goes on."""
    device = choose_device(options.teacher_device or options.device)
    ready = prepare(options, World(0, 1, device))
    check_apart(path, paths_read(options, ready.models))
    if isinstance(ready.order, StreamOrder):
        raise MinitronError("a stream can not be recorded", "leave --stream out: the text is then tokenised once")
    if len(ready.models.teachers) != 1:
        raise MinitronError(
            "a recording is of one teacher", "give one --teacher MODEL, and record each into its own directory"
        )
    header, windows = plan(ready, ready.order, top_k)
    total = sum(len(numbers) for numbers in windows)
    size = total * header.record().itemsize
    need_space(path, size)
    store.begin(path, header, windows)
    say(
        f"recording the top {top_k} of {header.vocab:,} from {options.teacher[0]} over {total:,} windows of "
        f"{header.seq_len} tokens: {size / 1e9:.2f} GB in {path}"
    )
    with stop_on_signal() as stop:
        done = _record(ready, ready.order, header, windows, path, device, stop)
    if done < total:
        return Recorded(path, done * header.seq_len, size, stop.exit_code)
    store.finish(path, header)
    return Recorded(path, total * header.seq_len, size)


def plan(ready: Prepared, order: Order, top_k: int) -> tuple[Header, tuple[np.ndarray, ...]]:
    """What to record: the header, and the windows of each token file that the run's steps read."""
    teacher = ready.models.teachers[0]
    vocab = min(int(load_config(m)["vocab_size"]) for m in (ready.models.student, teacher))
    if not 0 < top_k < vocab:
        raise MinitronError(
            f"--top-k {top_k} does not fit {vocab} ids", f"give 1 to {vocab - 1}; the papers lose below 100"
        )
    assert ready.options.steps is not None
    header = Header(
        teacher=model_digest(teacher),
        tokenizer_hash=order.files[0].header.tokenizer_hash,
        tokens_sha256=tuple(f.header.tokens_sha256 for f in order.files),
        seq_len=order.seq_len,
        top_k=top_k,
        vocab=vocab,
        temperature=ready.options.temperature,
    )
    return header, windows_read(order, ready.options.steps)


def _record(
    ready: Prepared, order: Order, header: Header, windows: tuple[np.ndarray, ...], path: Path, device: torch.device,
    stop: StopFlag,
) -> int:  # fmt: skip
    """Append the records that are missing; returns how many windows there are now."""
    dtype = compute_dtype(ready.options.teacher_dtype, device)
    teacher = load_teacher(ready.models.teachers[0], dtype, ready.options.trust_remote_code).to(device)
    check_head(teacher, "teacher")
    counts = [store.recorded(path, header, i) for i in range(len(windows))]
    display = Display(sum(map(len, windows)), sum(counts))
    began, before = time.perf_counter(), sum(counts)
    size = ready.micro_batch
    try:
        for i, numbers in enumerate(windows):
            with (path / f"top-{i}.bin").open("ab") as stream, write_errors(path / "top"):
                while counts[i] < len(numbers) and not stop.signal:
                    part = numbers[counts[i] : counts[i] + size]
                    ids = torch.from_numpy(order.files[i].windows(part, header.seq_len)).to(device)
                    stream.write(_records(teacher, ids, header))
                    counts[i] += len(part)
                    rate = (sum(counts) - before) * header.seq_len / (time.perf_counter() - began)
                    display.step(sum(counts), {}, rate)
    finally:
        display.close()
    return sum(counts)


@torch.no_grad()
def _records(teacher: torch.nn.Module, ids: torch.Tensor, header: Header) -> bytes:
    hidden = backbone_of(teacher)(input_ids=ids, use_cache=False).last_hidden_state[:, :-1].flatten(0, 1)
    top = topk.record(hidden, head_of(teacher), header.top_k, header.temperature, header.vocab)
    return store.pack(header, top, len(ids))
