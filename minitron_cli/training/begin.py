"""The output directory when a run begins: whether the result is there already, and creating and locking it."""

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from minitron_cli.checkpoint.disk import write_errors
from minitron_cli.errors import MinitronError
from minitron_cli.hf.devices import machine_words
from minitron_cli.hf.process_group import World
from minitron_cli.training import rundir, state
from minitron_cli.training.announce import announce, check_room
from minitron_cli.training.mirror import Mirror
from minitron_cli.training.prepare import Prepared
from minitron_cli.training.repro import PREFIX

Say = Callable[[str], None]


def mirror_of(ready: Prepared, place: Path, inputs: Callable[[], Mapping[str, str]], say: Say) -> Mirror | None:
    """The run's copy elsewhere, where it has one; refused where it cannot be written or holds something else."""
    options = ready.options
    if options.mirror is None:
        return None
    mirror = Mirror(options.mirror, options.keep, say)
    mirror.check(options, inputs, afresh=place != Path(options.output) and not rundir.is_ours(place))
    return mirror


def is_done(
    ready: Prepared, place: Path, output: Path, inputs: dict[str, str], say: Say, mirror: Mirror | None = None
) -> bool:
    """Whether the result is there and whole, and in the mirror too; what that has beyond `place` is fetched."""
    done = _is_here(ready, place, output, inputs, say)
    if mirror is not None:
        done = done or (mirror.fetch(place) and _is_here(ready, place, output, inputs, say))
        if done:
            mirror.complete(output)
    return done


def _is_here(ready: Prepared, place: Path, output: Path, inputs: dict[str, str], say: Say) -> bool:
    """Whether the result is there and whole; a run of other options in `output` is refused, in OUT.new discarded."""
    if place != output:
        if changed := rundir.changes(place, ready.options, inputs):
            with rundir.locked(place):
                say(f"{place} is discarded: it was started with different options ({'; '.join(changed)})")
                shutil.rmtree(place)
        done = rundir.examine(place, ready.options, inputs) and not rundir.damage(place)
        if done:
            rundir.publish(place, output)
        return done
    if not rundir.examine(output, ready.options, inputs):
        return False
    if problems := rundir.damage(output):
        if not state.checkpoints(output / "run"):
            raise MinitronError(
                f"{output} is damaged ({'; '.join(problems)}) and has no checkpoint to export again",
                "train again with --overwrite",
            )
        say(f"warning: {output} is damaged ({'; '.join(problems)}); it is exported again")
        return False
    return True


@contextmanager
def begun(
    ready: Prepared, place: Path, inputs: dict[str, str], world: World, preflight: bool, say: Say
) -> Iterator[None]:
    """Announce the run and hold its directory; one that fails before its first checkpoint leaves at most a repro."""
    if world.rank != 0:
        world.barrier()
        yield
        return
    announce(ready, world, say)
    if preflight:
        check_room(ready, world)
    if place != Path(ready.options.output):
        say(f"{ready.options.output} stays as it is until the new run, in {place}, is complete")
    with write_errors(place), rundir.locked(place):
        created = rundir.create(place, ready.options, inputs, f"{world.size} x {machine_words(world.device)}")
        try:
            world.barrier()
            yield
        except BaseException:
            left = state.checkpoints(place / "run") or any((place / "run").glob(f"{PREFIX}*"))
            if created and not left:
                shutil.rmtree(place / "run", ignore_errors=True)
                with suppress(OSError):
                    place.rmdir()
            raise
