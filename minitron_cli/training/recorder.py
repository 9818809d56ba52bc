"""What happens around the steps: metrics, evaluation on a fixed slice, checkpoints, each when due."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from minitron_cli.hf.memory import DEVICE_PEAK, HOST_PEAK, peak_memory
from minitron_cli.training.grading import Regressed, Score, logged, regressions
from minitron_cli.training.loop import Job
from minitron_cli.training.metrics import MetricsLog, read_metrics
from minitron_cli.training.mix import Mixer
from minitron_cli.training.progress import Display
from minitron_cli.training.saving import Saver
from minitron_cli.training.state import Progress


@dataclass(frozen=True, slots=True)
class Cadence:
    """Every how many steps something is due; 0 = never. The last step is always logged, evaluated and saved."""

    log: int
    evaluate: int
    save: int
    total: int
    exports: tuple[int, ...] = ()
    grade: int = 0

    def due(self, every: int, step: int) -> bool:
        return step == self.total or (every > 0 and step % every == 0)


@dataclass(slots=True)
class Recorder:
    """Follows a run; `progress` is the step whose weights are in memory. `log` is None on all ranks but the first."""

    run: Path
    job: Job
    cadence: Cadence
    display: Display
    log: MetricsLog | None
    evaluate: Callable[[], dict[str, float]] | None
    export: Callable[[Progress], None]
    progress: Progress
    saver: Saver
    mixer: Mixer | None = None
    grade: Callable[[], Sequence[Score]] | None = None
    stop_on_regression: bool = False
    _since: tuple[float, int] = field(init=False)
    _saved: int = field(init=False)

    def __post_init__(self) -> None:
        self._since = (time.perf_counter(), self.progress.tokens)
        self._saved = self.progress.step

    def __call__(self, progress: Progress, values: Mapping[str, float]) -> None:
        """After a step: log, evaluate, export, save, each when due."""
        self.saver.raise_failure()
        self.progress = progress = self._with_mix(progress)
        rate = self._rate()
        self.display.step(progress.step, values, rate)
        if self.cadence.due(self.cadence.log, progress.step):
            self._write(values, rate)
        evaluate = self.cadence.due(self.cadence.evaluate, progress.step) or self.owes_mix()
        grade = self.cadence.due(self.cadence.grade, progress.step)
        if evaluate or grade:
            self.measure(evaluate, grade)
            progress = self.progress
        if progress.step in self.cadence.exports:
            started = time.perf_counter()
            self.export(progress)
            self._skip_time(time.perf_counter() - started)
        if self.cadence.due(self.cadence.save, progress.step):
            self.save()  # last: a run that is killed before goes back to an earlier step, and comes by here again

    def measure(self, evaluate: bool = True, grade: bool = True) -> None:
        """Evaluate and grade now, update the mix where that is due, and write it all as one line (a collective)."""
        started = time.perf_counter()
        found = self.evaluate() if evaluate and self.evaluate is not None else {}
        mixed = self._update_mix(found)
        scores = self.grade() if grade and self.grade is not None else ()
        fallen = self._fallen(scores)
        if found or scores:
            self._tell(found, mixed, scores)
        self._skip_time(time.perf_counter() - started)
        if fallen:
            raise Regressed(
                f"{'; '.join(fallen)}: a fall this large by step {self.progress.step} is not noise",
                "the step is saved: look at the curves, and type the line again without --stop-on-regression to go on",
            )

    def _fallen(self, scores: Sequence[Score]) -> list[str]:
        """The scores that fell, on all ranks, where that is to stop the run."""
        if not self.stop_on_regression:
            return []
        found = regressions(scores, read_metrics(self.run)) if self.log is not None else []
        _, anywhere = self.job.world.agree(0, bool(found))
        return (found or ["a score fell"]) if anywhere else []

    def _tell(self, found: Mapping[str, float], mixed: Mapping[str, float], scores: Sequence[Score]) -> None:
        shown = "  ".join(
            f"{name.removeprefix('eval_')} {value:z.4f}" for name, value in found.items() if "/" not in name
        )
        shown += "".join(f"  {score.name} {score.value:.4f}" for score in scores)
        self.display.say(f"step {self.progress.step}: eval {shown}")
        if self.log is not None:
            self.log.write(
                {"step": self.progress.step, "tokens": self.progress.tokens, **found, **mixed, **logged(scores)}
            )

    def owes_mix(self) -> bool:
        """Whether the mix of the next steps has yet to be computed from the student in memory."""
        return self.mixer is not None and self.mixer.due(self.progress.step)

    def _update_mix(self, found: Mapping[str, float]) -> dict[str, float]:
        if self.mixer is None or not self.owes_mix():
            return {}
        logged = self.mixer.update(self.progress.step, found)
        self.progress = self._with_mix(self.progress)
        if warning := self.mixer.taken_over():
            self.display.say(warning)
        return logged

    def _with_mix(self, progress: Progress) -> Progress:
        """The loop's progress with the weights, which the loop does not know."""
        return progress if self.mixer is None else replace(progress, mix=self.mixer.history)

    def save(self) -> None:
        """Save the latest step, unless it is saved already (a collective)."""
        if self._saved == self.progress.step:
            return
        started = time.perf_counter()
        self.saver.save(self.progress)
        self._saved = self.progress.step
        self._skip_time(time.perf_counter() - started)

    def finish(self) -> None:
        """Save the latest step, and wait until it is written (a collective)."""
        self.save()
        self.saver.wait()

    def close(self) -> None:
        """Wait for the checkpoint being written, close the metrics and leave the terminal as it was."""
        self.saver.close()
        self.display.close()
        if self.log is not None:
            self.log.close()

    def _rate(self) -> float:
        """Tokens per second since the last logged step, evaluation and saving left out."""
        seconds = time.perf_counter() - self._since[0]
        return (self.progress.tokens - self._since[1]) / seconds if seconds > 0 else 0.0

    def _skip_time(self, seconds: float) -> None:
        began, tokens = self._since
        self._since = (began + seconds, tokens)

    def _write(self, values: Mapping[str, float], rate: float) -> None:
        progress = self.progress
        if self.log is not None:
            line: dict[str, float | int] = {
                "step": progress.step,
                "tokens": progress.tokens,
                "flops": progress.flops,
                **values,
            }
            device = self.job.world.device
            peak = HOST_PEAK if device.type == "cpu" else DEVICE_PEAK
            line |= {"tokens_per_second": round(rate, 1), peak: peak_memory(device)}
            if progress.skipped:
                line["skipped"] = progress.skipped
            self.log.write(line)
        self._since = (time.perf_counter(), progress.tokens)
