"""Run a teacher once over the windows that a training will read, and store its logits."""

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from minitron_cli.checkpoint.atomic import check_apart
from minitron_cli.checkpoint.disk import need_space, write_errors
from minitron_cli.checkpoint.provenance import model_digest
from minitron_cli.data.order import Order
from minitron_cli.data.stream import StreamOrder
from minitron_cli.errors import MinitronError
from minitron_cli.hf.devices import choose_device, choose_dtype
from minitron_cli.hf.process_group import World, join
from minitron_cli.spec.counts import bytes_text
from minitron_cli.training.cached_logits import store, topk
from minitron_cli.training.cached_logits.ahead import asking
from minitron_cli.training.cached_logits.layout import Cached
from minitron_cli.training.cached_logits.sampled import draw, offsets_of
from minitron_cli.training.cached_logits.served import IN_FLIGHT
from minitron_cli.training.cached_logits.store import Header
from minitron_cli.training.head import check_head
from minitron_cli.training.inputs import paths_read, require_one_length, windows_read
from minitron_cli.training.interrupt import StopFlag, stop_on_signal
from minitron_cli.training.load import load_teacher
from minitron_cli.training.options import Options
from minitron_cli.training.prepare import Prepared, prepare
from minitron_cli.training.progress import Display
from minitron_cli.training.rows import Share, read_by, share_of
from minitron_cli.training.step import side_of
from minitron_cli.training.student import Taps

TOP_K = "top-k"  # what is recorded unless draws are asked for


@dataclass(frozen=True, slots=True)
class Recorded:
    """The result of a recording; `stopped_by` is the exit code that a signal asks for, 0 when it is finished."""

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
    def stretch(self) -> int:
        """Windows that are recorded at a time, the same however many processes there are."""
        return self.ready.stretches[-1].micro_batch if self.ready.models.served is None else IN_FLIGHT

    @property
    def num_windows(self) -> int:
        return sum(map(len, self.windows))

    @property
    def num_bytes(self) -> int:
        """What the records take at the most."""
        return self.num_windows * self.header.layout().most_bytes()

    def __str__(self) -> str:
        return (
            f"{self.header} of {self.header.vocab:,} from {self.ready.options.teacher[0]} over {self.num_windows:,} "
            f"windows of {self.header.seq_len} tokens: {'at most ' * bool(self.header.draws)}"
            f"{bytes_text(self.num_bytes)}"
        )


def plan_recording(options: Options, path: Path, record: str = TOP_K) -> RecordingPlan:
    """Make every check of a recording into `path` (see `parse_record`); nothing is loaded or written there."""
    device = choose_device(options.teacher_device or options.device)
    ready = prepare(options, World(0, 1, device))
    check_apart(path, paths_read(ready.options, ready.models))
    if isinstance(ready.order, StreamOrder):
        raise MinitronError("a stream cannot be recorded", "leave --stream out: the text is then tokenised once")
    if len(ready.models.teachers) != 1 and ready.models.served is None:
        raise MinitronError(
            "a recording is of one teacher", "give one --teacher MODEL, and record each into its own directory"
        )
    require_one_length(ready.order, str(path))
    header = _header(ready, ready.order, record)
    assert ready.options.steps is not None
    found = RecordingPlan(ready, ready.order, header, windows_read(ready.order, ready.options.steps), device)
    store.check_place(path, header, found.windows)
    need_space(path, found.num_bytes)
    return found


def _header(ready: Prepared, order: Order, record: str) -> Header:
    vocab, _ = ready.vocabulary
    draws, power = parse_record(record)
    served, reader = ready.models.served, next(filter(None, ready.models.readers), None)
    if draws and served is not None:
        raise MinitronError(f"--record {record} needs the teacher itself: a server gives its top k", "record top-k")
    top_k = 0 if draws else ready.options.top_k
    if not draws and not top_k < vocab:
        raise MinitronError(
            f"--top-k {top_k} does not fit {vocab} ids", f"give 1 to {vocab - 1}; the papers lose below 100"
        )
    return Header(
        teacher=model_digest(ready.models.teachers[0]) if served is None else f"{served.model} served",
        tokenizer_hash=order.files[0].header.tokenizer_hash,
        tokens_sha256=tuple(f.header.tokens_sha256 for f in order.files),
        seq_len=order.seq_len,
        top_k=top_k,
        vocab=vocab,
        temperature=ready.options.temperature,
        cross_doc=ready.options.cross_doc,
        draws=draws,
        power=power,
        seed=ready.options.seed if draws else 0,
        reader="" if reader is None else reader.digest,
    )


def parse_record(text: str) -> tuple[int, float]:
    """The draws of a token and the power that the teacher's distribution is raised to for them; no draws: the top k."""
    if text == TOP_K:
        return 0, 1.0
    kind, _, numbers = text.partition(":")
    draws, _, power = numbers.partition(":")
    try:
        found = int(draws), float(power or 1)
    except ValueError:
        found = (0, 1.0)
    if kind != "sampled" or not 0 < found[0] < 1 << 16 or not 0 < found[1] <= 4:
        raise MinitronError(
            f"--record {text!r} is unknown",
            f"{TOP_K}, or sampled:DRAWS[:POWER], e.g. sampled:64 (at most 65535 draws, a power above 0, at most 4)",
        )
    return found


def record_teacher(
    options: Options, path: Path, record: str = TOP_K, say: Callable[[str], None] = lambda text: None
) -> Recorded:
    """Record the teacher of `options` for every window that its steps read; called again, it resumes.

    Several processes share the windows, and write the same bytes as one. Only what the first one returns is valid.
    """
    with join(options.teacher_device or options.device) as world:
        plan = plan_recording(options, path, record)
        header, windows = plan.header, plan.windows
        world.barrier()  # nothing is written before all have looked
        with write_errors(path), stop_on_signal() as stop:
            if world.first:
                store.begin(path, header, windows)
                say(f"recording {plan} in {path}")
            world.barrier()
            _record(plan, path, stop, world)
            world.barrier()
            left = store.missing(path, header, windows, 1) if world.first else []
            if world.first and not left:
                store.finish(path, header, windows)
    tokens = (plan.num_windows - len(left)) * header.seq_len
    return Recorded(path, tokens, header.num_bytes(path), stop.exit_code if left else 0)


def _record(plan: RecordingPlan, path: Path, stop: StopFlag, world: World) -> None:
    """Append this process's share of the missing records, in step with the others; a signal to one stops them all."""
    header = plan.header
    there = [store.parts(path, header, file, len(numbers)) for file, numbers in enumerate(plan.windows)]
    work = store.missing(path, header, plan.windows, plan.stretch)
    world.barrier()
    if not work:
        return
    rounds = -(-len(work) // world.size)
    mine = work[world.rank * rounds : (world.rank + 1) * rounds]
    before = plan.num_windows - sum(one.stop - one.start for one in work)
    display = Display(plan.num_windows, before, quiet=not world.first)
    with closing(display), _teller(plan) as tell, closing(store.Appender(path, header, there)) as appender:
        began = time.perf_counter()
        for number in range(rounds):
            if world.agree(0, bool(stop.signal))[1]:
                break
            for one in mine[number : number + 1]:
                appender.write(one, tell(one.file, plan.windows[one.file][one.start : one.stop]))
            done = min(before + (number + 1) * world.size * plan.stretch, plan.num_windows)
            display.step(done, {}, (done - before) * header.seq_len / (time.perf_counter() - began))


@contextmanager
def _teller(plan: RecordingPlan) -> Iterator[Callable[[int, np.ndarray], list[bytes]]]:
    """A function (token file, windows) -> their records, from the model or the server."""
    models, options = plan.ready.models, plan.ready.options
    if models.served is None:
        dtype = choose_dtype(options.teacher_dtype, plan.device)
        teacher = load_teacher(models.teachers[0], dtype, options.trust_remote_code, plan.device)
        check_head(teacher, "teacher")
        yield partial(_records, teacher, plan)
        return
    with asking(models.served) as asker:

        def tell(file: int, windows: np.ndarray) -> list[bytes]:
            share = _share(plan, file, windows)
            return [record.result() for record in asker.ask(share.ids, share.positions)]

        yield tell


def _share(plan: RecordingPlan, file: int, windows: np.ndarray) -> Share:
    """Some windows of a token file, and how the teacher reads them; documents are kept apart as the header says."""
    order, files = plan.order, np.full(len(windows), file)
    documents = None if plan.header.cross_doc else order.documents_at(files, windows, order.seq_len)
    share = share_of(order.rows_at(files, windows, order.seq_len), documents)
    return read_by(plan.ready.models.readers, share)


@torch.no_grad()
def _records(teacher: nn.Module, plan: RecordingPlan, file: int, windows: np.ndarray) -> list[bytes]:
    """The records of some windows of a token file by a teacher in memory."""
    share, header = _share(plan, file, windows), plan.header
    reader, reading = next(zip(plan.ready.models.readers, share.readings), (None, None))
    image = None if reader is None else torch.from_numpy(reader.image)
    side = side_of(teacher, Taps(teacher, ()).run, share.ids, share.positions, image, reading)
    hidden, head = side.last[:, :-1].flatten(0, 1), side.head
    found: Cached
    if header.draws:
        offsets = torch.from_numpy(offsets_of(header.seed, file, windows, header.seq_len - 1)).flatten()
        found = draw(hidden, head, offsets, header.draws, header.power, header.temperature, header.vocab)
    else:
        found = topk.record(hidden, head, header.top_k, header.temperature, header.vocab)
    if side.match is not None:
        found = replace(found, matched=side.match.next[:, :-1].flatten())
    return header.layout().pack(found, len(windows))
