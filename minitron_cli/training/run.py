"""One training run, from options to the exported checkpoint."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch

from minitron_cli.checkpoint.provenance import read_manifest
from minitron_cli.data.order import Order
from minitron_cli.hf.process_group import World, join
from minitron_cli.spec.plan import Plan
from minitron_cli.training import export, export_run, loop, rundir, state
from minitron_cli.training.announce import check_room, facts, settle
from minitron_cli.training.assemble import Assembly, assemble
from minitron_cli.training.begin import begun, is_done, mirror_of
from minitron_cli.training.cached_logits.ahead import asking, taught_by
from minitron_cli.training.grading import Grade, Regressed, grader
from minitron_cli.training.interrupt import StopFlag, stop_on_signal
from minitron_cli.training.loop import Job
from minitron_cli.training.masks.term import Masks
from minitron_cli.training.metrics import MetricsLog, read_metrics
from minitron_cli.training.mix import Mixer
from minitron_cli.training.options import Options
from minitron_cli.training.prepare import Prepared, prepare, world_of
from minitron_cli.training.progress import Display
from minitron_cli.training.recorder import Cadence, Recorder
from minitron_cli.training.reload import check_reloaded, live_loss
from minitron_cli.training.repro import write_repro
from minitron_cli.training.rows import Rows, Share, read_by, rows_of, with_known_ids, with_readings
from minitron_cli.training.saving import Saver
from minitron_cli.training.state import Offer, Progress
from minitron_cli.training.streams import close, open_streams, stream_rows
from minitron_cli.training.validation import evaluator, first_windows, held_out_names

Say = Callable[[str], None]


class Trim(Protocol):
    """Write what `plan` keeps of the checkpoint in `whole` to `output`, with `facts` in its manifest."""

    def __call__(self, whole: Path, output: Path, *, plan: Plan, facts: Mapping[str, Any]) -> None: ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a run. `stopped_by` is the exit code that a signal asks for, 0 when the run reached its end."""

    output: Path
    options: Options
    progress: Progress
    before: dict[str, float] | None
    after: dict[str, float] | None
    stopped_by: int = 0
    was_done: bool = False


@contextmanager
def rows_for(ready: Prepared, mixer: Mixer | None, run: Path, world: World) -> Iterator[Rows]:
    """This rank's rows; streams read ahead until the block ends."""
    options, order = ready.options, ready.order
    if isinstance(order, Order):

        def rows(step: int) -> Share:
            mixed = order if mixer is None else mixer.order
            return rows_of(mixed, world, cross_doc=options.cross_doc, recording=ready.models.recording)(step)

        known = with_readings(with_known_ids(rows, *ready.vocabulary), ready.models.readers)
        if (served := ready.models.served) is None:
            yield known
            return
        with asking(served) as asker:
            yield taught_by(served, known, ready.schedule.steps, asker, alone=world.size == 1)
        return
    streams = open_streams(options, ready.models, run, world.rank)
    try:
        known = with_known_ids(stream_rows(streams, world), *ready.vocabulary)
        yield with_readings(known, ready.models.readers)
    finally:
        close(streams)


def train(
    options: Options, *, overwrite: bool = False, preflight: bool = True, say: Say = lambda text: None,
    signals: bool = True, trim: Trim | None = None, grade: Grade | None = None,
) -> Outcome:  # fmt: skip
    """Run, or go on with, the training that `options` describe; returns when it is exported or stopped by a signal.

    All inputs are opened and checked before anything is written. With `overwrite`, a result that is in the way stays
    until the new one is complete (see `rundir`). Without `signals` no handler is installed: an interrupt is raised.
    Where masks are learned, `trim` cuts the student by the plan that they settle into. `grade` carries out the tasks of
    `options.eval_tasks`.
    """
    assert (options.verb == "shear") is (trim is not None)
    assert (options.eval_tasks is None) is (grade is None)
    output = Path(options.output)
    with join(options.device) as world:
        ready = settle(prepare(options, world), world, lambda short: world.agree(0, short)[1])
        place = rundir.place_of(output, overwrite)
        inputs = ready.inputs() if world.rank == 0 else {}
        mirror = mirror_of(ready, place, lambda: inputs, say) if world.rank == 0 else None
        done = world.rank == 0 and is_done(ready, place, output, inputs, say, mirror)
        if world.agree(0, done)[1]:
            return _outcome(output, ready.options, _final(output), was_done=True)
        with begun(ready, place, inputs, world, preflight, say):
            offer = state.offer_nobody if mirror is None else mirror.offer
            with nullcontext() if mirror is None else mirror.following():
                progress, stopped_by = _train_and_export(ready, place, inputs, world, say, signals, trim, grade, offer)
            if stopped_by:
                if mirror is not None:
                    mirror.try_to_complete(place)
                return _outcome(place, ready.options, progress, stopped_by=stopped_by)
            if world.rank == 0:
                rundir.publish(place, output)
        if mirror is not None:
            mirror.complete(output)
        return _outcome(output, ready.options, progress)


def _train_and_export(
    ready: Prepared, place: Path, inputs: dict[str, str], world: World, say: Say, signals: bool, trim: Trim | None,
    grade: Grade | None, offer: Offer,
) -> tuple[Progress, int]:  # fmt: skip
    """Train to the end and export; the progress, and the exit code that a signal asks for (0: it is exported)."""
    mixer = None
    if ready.mixing is not None:
        assert isinstance(ready.order, Order)
        mixer = Mixer(ready.order, ready.mixing, ready.schedule.steps)
    with stop_on_signal(signals) as stop, rows_for(ready, mixer, place / "run", world) as rows:
        assembly = assemble(ready, rows, world)
        progress = follow(ready, assembly, mixer, grade, place / "run", stop, inputs, say, offer)
    if progress.step < ready.schedule.steps:
        return progress, stop.exit_code
    _export(ready, assembly, progress, place, inputs, trim)
    return progress, 0


def _export(
    ready: Prepared, assembly: Assembly, progress: Progress, place: Path, inputs: dict[str, str], trim: Trim | None
) -> None:
    """Gather the student (a collective), write it, and check that it loads as what it was in memory."""
    world, masks = assembly.job.world, assembly.job.step.term(Masks)
    if masks is not None:
        masks.require_settled(ready.options.max_gap)
    plan = masks.plan() if masks is not None else None
    vocab = ready.objective.vocab or ready.sizes[0].shape["vocab"]
    live = live_loss(assembly, vocab)
    tensors = export.gather(assembly.job.step, ready.export_dtype, world.first)
    assembly.job.optimizer.state.clear()  # makes room for the student that is loaded again
    if world.rank != 0:
        return
    types = (ready.export_dtype, assembly.cast_to or torch.float32)
    check = partial(
        check_reloaded,
        live=live,
        vocab=vocab,
        dtype=max(types, key=lambda dtype: torch.finfo(dtype).eps),
        device=world.device if world.size == 1 else torch.device("cpu"),  # one device may not hold it whole
        trust_remote_code=ready.options.trust_remote_code,
    )
    facts = export_run.manifest(ready.options, ready.models, progress, inputs)
    origin = export_run.origin_of(ready.options, ready.models)
    cut = partial(trim, plan=plan, facts={"training": facts["training"]}) if trim and plan else None
    export.export(place, origin, tensors, ready.export_dtype, facts, check, cut)


def start(options: Options, job: Job, run: Path, say: Say) -> tuple[Progress, bool]:
    """Load the latest checkpoint (or the branch's, or nothing); whether an earlier part of this run is continued."""
    own = state.load_latest(run, job.step, job.optimizer, job.world, say)
    if own is not None:
        say(f"continuing from step {own.step} of {options.steps}")
        return own, True
    if options.branch_from is None:
        return Progress(), False
    origin = Path(options.branch_from)
    with state.naming_others(origin):
        progress = state.load(origin, job.step, job.optimizer, job.world)
    say(f"branching from step {progress.step} of {options.branch_from}")
    return progress, False


def rehearse(
    options: Options, nproc: int, *, overwrite: bool = False, preflight: bool = True
) -> tuple[dict[str, Any], Callable[[], None]]:
    """What `train` would do, and a function that makes the rest of its checks: room, and what the output holds.

    Nothing is loaded, and nothing is written but token files of raw text into the cache.
    """
    world = world_of(options, nproc)
    ready = settle(prepare(options, world), world)
    output = Path(options.output)

    def check() -> None:
        place = rundir.place_of(output, overwrite)
        if place == output:
            begun = (output / "run" / rundir.OPTIONS).is_file()
            inputs = ready.inputs() if begun else {}
            rundir.examine(output, ready.options, inputs)
        mirror_of(ready, place, ready.inputs, say=lambda text: None)
        if preflight:
            check_room(ready, world)

    return facts(ready, world), check


def follow(
    ready: Prepared, assembly: Assembly, mixer: Mixer | None, grade: Grade | None, run: Path, stop: StopFlag,
    inputs: dict[str, str], say: Say, offer: Offer = state.offer_nobody,
) -> Progress:  # fmt: skip
    """Train from where the run is to the end, recording on the way; whole steps are offered."""
    options, job, world = ready.options, assembly.job, assembly.job.world
    first = world.rank == 0
    progress, continued = start(options, job, run, say if first else lambda text: None)
    if continued:
        offer(state.place_of(run, progress))
    if mixer is not None:
        mixer.restore(progress.mix)
    recorder = Recorder(
        run=run,
        job=job,
        cadence=_cadence(ready),
        display=Display(job.schedule.steps, progress.step, quiet=not first),
        log=MetricsLog(run, progress.step if continued else -1, options.tensorboard) if first else None,
        evaluate=_evaluator(ready, assembly),
        export=export_run.exporter(ready, job.step, world.rank, run / export.EXPORTED, inputs),
        progress=progress,
        saver=Saver(run, job.step, job.optimizer, world, options.keep, bool(options.async_save), offer),
        mixer=mixer,
        grade=None if grade is None else grader(ready, job.step, world, grade),
        stop_on_regression=options.stop_on_regression,
    )
    try:
        if not continued:
            recorder.measure()
        elif recorder.owes_mix():
            recorder.measure(True, recorder.cadence.due(recorder.cadence.grade, progress.step))
        loop.run(job, progress, stop, recorder)
    except loop.NotFinite as error:
        recorder.finish()
        rows = None
        if isinstance(ready.order, Order):
            order = ready.order if mixer is None else mixer.order
            rows = [list(map(int, place)) for place in zip(*order.places(error.step))]
        error.message += f"; what is needed to repeat it is in {write_repro(run, job, error, rows, inputs)}"
        raise
    except (loop.StepRefused, Regressed):
        recorder.finish()
        raise
    else:
        recorder.finish()
    finally:
        recorder.close()
    return recorder.progress


def _cadence(ready: Prepared) -> Cadence:
    options = ready.options
    evaluate, save = options.eval_every or 0, options.save_every or 0
    grade = options.eval_tasks_every or 0
    return Cadence(options.log_every, evaluate, save, options.steps or 0, ready.export_steps, grade)


def _evaluator(ready: Prepared, assembly: Assembly) -> Callable[[], dict[str, float]] | None:
    options, files = ready.options, ready.held_out
    if not files:
        return None
    shares = [read_by(ready.models.readers, first_windows(file, options)) for file in files]
    return evaluator(assembly.job, assembly.measure, shares, held_out_names(files))


def _final(output: Path) -> Progress:
    """The progress of a finished run: of its last checkpoint, else what the manifest says (not the seconds)."""
    if saved := state.checkpoints(output / "run"):
        return state.read_progress(saved[-1])
    facts = (read_manifest(output) or {}).get("training", {})
    known = {name: facts.get(name) for name in ("tokens", "flops", "first", "last")}
    return Progress(step=facts.get("steps", 0), **known)


def _outcome(
    output: Path, options: Options, progress: Progress, *, stopped_by: int = 0, was_done: bool = False
) -> Outcome:
    """Sum a run up, with the first and the last evaluation that it wrote down."""
    lines = read_metrics(output / "run")
    found = [e for line in lines if (e := {k: v for k, v in line.items() if k.startswith("eval_")})]
    before, after = (found[0], found[-1]) if found else (None, None)
    return Outcome(output, options, progress, before, after, stopped_by, was_done)
