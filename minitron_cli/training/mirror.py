"""A run's copy at an address of object storage: what is complete in OUT is copied, and fetched where OUT lacks it.

URL/run/options.json         what the run is: the same line again must match it
URL/run/*.jsonl              its metrics, and the indices of its streams
URL/run/step-NNNNNNN/        the last checkpoints
URL/run/exported/step-N/     students of --export-at
URL/config.json, ...         the finished student

Directories appear there whole or not at all (see `whole`).
"""

import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from minitron_cli.checkpoint.atomic import MANIFEST, atomic_file
from minitron_cli.checkpoint.disk import write_errors
from minitron_cli.errors import MinitronError
from minitron_cli.training import export, rundir, state, whole
from minitron_cli.training.options import Options
from minitron_cli.training.patience import AT_WORK
from minitron_cli.training.remote import PROBE, Remote
from minitron_cli.training.step_files import STATE, Damaged

_ELSEWHERE = "give another --mirror address"
_STARTED = f"run/{rundir.OPTIONS}"


class Mirror:
    """Keeps the latest `keep` steps of a run at `url`, by the first rank; `say` also hears of copies that fail."""

    def __init__(self, url: str, keep: int, say: Callable[[str], None]) -> None:
        self._remote, self._keep, self._say = Remote(url), keep, say
        self._damaged: set[str] = set()
        # What the thread copies now, what it copies next, and the last whole step; all under the condition.
        self._change = threading.Condition()
        self._at: Path | None = None
        self._next: Path | None = None
        self._latest: Path | None = None
        self._ended = False

    def check(self, options: Options, inputs: Callable[[], Mapping[str, str]], afresh: bool = False) -> None:
        """Refuse an address that cannot be written to, or holds anything but the run that `options` describe.

        A run that starts `afresh` finds none there.
        """
        remote = self._remote
        started = remote.read(_STARTED)
        found = self._steps() or remote.read(MANIFEST) is not None
        others = [name for name in remote.names() if name != "run" and not name.startswith(PROBE)]
        if started is None and (found or others):
            raise MinitronError(f"{remote} holds something, and no run of minitron", _ELSEWHERE)
        if started is not None and found:
            if afresh:
                raise MinitronError(
                    f"{remote} holds a run, which --overwrite leaves alone",
                    f"{_ELSEWHERE}, or remove what is there",
                )
            if changed := self._changes(started, options, inputs()):
                raise MinitronError(
                    f"{remote} holds a run that was started with different options: {'; '.join(changed)}",
                    f"type the line it was started with, or {_ELSEWHERE}",
                )
        remote.check_writable()
        remote.patience = AT_WORK

    def fetch(self, place: Path) -> bool:
        """Bring what is whole there and not in `place`; whether that is the finished student.

        Of the steps the latest comes, if it is later than those of `place`. Raises MinitronError where the address
        does not answer: a run that went on without it would take its place.
        """
        remote, run = self._remote, place / "run"
        steps, finished = self._steps(), remote.read(MANIFEST) is not None
        local = state.checkpoints(run)
        newer = [name for name in steps if not local or name > local[-1].name]
        if not (finished or newer):
            return False
        with write_errors(place), rundir.locked(place):
            if not (run / rundir.OPTIONS).is_file():
                self._bring_file(_STARTED, run / rundir.OPTIONS)
            for name in remote.names(f"run/{export.EXPORTED}"):
                self._bring(f"run/{export.EXPORTED}/{name}", MANIFEST, run / export.EXPORTED / name)
            finished = finished and self._bring_student(place)
            if not (finished or any(self._bring(f"run/{name}", STATE, run / name) for name in reversed(newer))):
                if newer and not local:
                    raise MinitronError(f"{remote} holds no step of this run that is whole", _ELSEWHERE)
                return False
            for name in remote.names("run"):
                if name.endswith(".jsonl"):
                    self._bring_file(f"run/{name}", run / name)
        return finished

    @contextmanager
    def following(self) -> Iterator[None]:
        """Copy steps as they are offered, by a thread, until the block ends; `complete` is to follow.

        Where the block fails, its last step is copied first; an interrupt waits for nothing.
        """
        thread = threading.Thread(target=self._work, name="minitron-mirror", daemon=True)
        thread.start()
        try:
            yield
        except Exception:
            self._end(thread)
            if self._latest is not None:
                self.try_to_complete(self._latest.parent.parent)
            raise
        except BaseException:
            self._tell_to_end()
            raise
        self._end(thread)

    def offer(self, step: Path) -> Path | None:
        """Have a whole step copied next, in the place of an earlier one that waits; the one that is being copied."""
        with self._change:
            self._latest = self._next = step
            self._change.notify()
            return self._at

    def complete(self, place: Path) -> None:
        """Copy what is whole in `place` and not there yet. Raises MinitronError."""
        run, finished = place / "run", (place / MANIFEST).is_file()
        if self._latest is None and not finished:
            return
        try:
            self._copy_run(run, None if self._latest is None else run / self._latest.name)
            if finished:
                self._copy(run / export.MASKED, f"run/{export.MASKED}", MANIFEST)
                self._copy(place, "", MANIFEST)
        except MinitronError as error:
            raise MinitronError(
                f"{place} is not copied whole: {error.message}", "type the same line again: it copies what is missing"
            ) from error

    def try_to_complete(self, place: Path) -> None:
        """The same for a run that ends early; a failure is said."""
        try:
            self.complete(place)
        except MinitronError as error:
            self._say(f"warning: {error.message}")

    def _work(self) -> None:
        while True:
            with self._change:
                self._at = None
                self._change.wait_for(lambda: self._next is not None or self._ended)
                if self._ended or self._next is None:
                    return
                self._at, self._next = self._next, None
            try:
                self._copy_run(self._at.parent, self._at)
            except MinitronError as error:
                if not self._ended:
                    self._say(f"warning: {self._at.name} is not copied, the run goes on: {error.message}")

    def _end(self, thread: threading.Thread) -> None:
        """Let the thread end what it copies, without further tries; and no step stay for its sake."""
        self._tell_to_end()
        thread.join()
        self._remote.stopped.clear()
        if self._latest is not None:
            state.thin(self._latest.parent, self._keep, self._latest)

    def _tell_to_end(self) -> None:
        with self._change:
            self._ended = True
            self._change.notify()
        self._remote.stopped.set()

    def _copy_run(self, run: Path, step: Path | None) -> None:
        """What makes the run readable, then the step."""
        self._remote.replace(run / rundir.OPTIONS, _STARTED)
        for student in sorted((run / export.EXPORTED).glob("step-*")):
            self._copy(student, f"run/{export.EXPORTED}/{student.name}", MANIFEST)
        for file in sorted(run.glob("*.jsonl")):
            self._remote.replace(file, f"run/{file.name}")
        if step is not None:
            self._copy(step, f"run/{step.name}", STATE)
            self._thin(step.name)

    def _copy(self, directory: Path, name: str, last: str) -> None:
        if (directory / last).is_file():
            whole.copy(self._remote, directory, name, last, again=name in self._damaged)
            self._damaged.discard(name)

    def _thin(self, step: str) -> None:
        """Remove the steps that are removed in OUT when `step` is there, and those that are not whole."""
        stay = [name for name in self._steps() if name <= step][-self._keep :]
        for name in self._remote.names("run"):
            if state.is_step(name) and name not in stay:
                whole.remove(self._remote, f"run/{name}", STATE)

    def _steps(self) -> list[str]:
        """The steps that are whole there, ascending."""
        names = filter(state.is_step, self._remote.names("run"))
        return [name for name in names if STATE in self._remote.names(f"run/{name}")]

    def _bring_student(self, place: Path) -> bool:
        """Fetch the finished student; False where it is damaged there."""
        fetched = place / "run" / ".export"
        shutil.rmtree(fetched, ignore_errors=True)
        if not self._bring("", MANIFEST, fetched):
            return False
        self._bring(f"run/{export.MASKED}", MANIFEST, place / "run" / export.MASKED)
        export.publish(fetched, place)
        return True

    def _bring_file(self, name: str, target: Path) -> None:
        with atomic_file(target) as temporary:
            self._remote.get(name, temporary)

    def _bring(self, name: str, last: str, target: Path) -> bool:
        """Fetch a directory, unless it is here; False where it is not there, or damaged, of which a warning tells."""
        if (target / last).is_file():
            return True
        try:
            return whole.fetch(self._remote, name, last, target, self._say)
        except Damaged as damage:
            self._damaged.add(name)
            self._say(f"warning: {damage.message}")
            return False

    def _changes(self, started: bytes, options: Options, inputs: Mapping[str, str]) -> list[str]:
        """In what the run there differs from the one that `options` describe."""
        with TemporaryDirectory() as directory:
            run = Path(directory, "run")
            run.mkdir()
            (run / rundir.OPTIONS).write_bytes(started)
            try:
                return rundir.changes(Path(directory), options, inputs)
            except MinitronError as error:
                message = error.message.replace(directory, str(self._remote))
                raise MinitronError(message, _ELSEWHERE) from error
