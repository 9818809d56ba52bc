"""Tasks inside a run: the figures of `minitron eval` on what is exported, what stops a run, what is refused."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from minitron_cli.__main__ import run
from minitron_cli.chain.grading import grade_of, judge_of
from minitron_cli.importance.options import Options as Measured
from minitron_cli.report.write import report
from minitron_cli.training.grading import Regressed, Score, regressions
from minitron_cli.training.metrics import read_metrics
from minitron_cli.training.options import Options
from minitron_cli.training.run import train
from tests.evaluate.conftest import write_task
from tests.report.reading import Page
from tests.training.runs import options, signal_after, write_text

Toy = Callable[..., Path]


@pytest.fixture
def line(toy: Toy, tmp_path: Path) -> Options:
    (tmp_path / "tasks").mkdir()
    write_task(tmp_path / "tasks", "letters")
    text = write_text(tmp_path / "text.jsonl")
    graded: dict[str, Any] = {"eval_tasks": "letters", "eval_tasks_every": 4, "include": (str(tmp_path / "tasks"),)}
    return options(toy("llama"), text, tmp_path / "out", steps=10, task_limit=16, **graded)


def test_code_of_a_tokenizer_runs_where_that_is_asked_for(
    line: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trusted: list[bool] = []
    monkeypatch.setattr("minitron_cli.hf.load.load_tokenizer", lambda path, trust: trusted.append(trust))
    for trust in (True, False):
        asked = Measured(data=line.data, depth_task="letters", depth_blocks=(1,), trust_remote_code=trust)
        assert judge_of(Path(line.student), asked, [tmp_path / "tasks"]) is not None
    assert trusted == [True, False]


def test_what_was_not_measured_is_not_written(line: Options, tmp_path: Path) -> None:
    """Evaluations that are due more often than gradings, and no held-out text for them."""
    graded = replace(line, eval_every=1, steps=6)
    train(graded, grade=lambda _: [Score("letters/acc", 0.5, 0.1, True)])
    lines = read_metrics(tmp_path / "out" / "run")
    assert [found["step"] for found in lines if "loss" not in found] == [0, 4, 6]


def test_the_student_is_graded_as_eval_grades_what_is_exported(
    line: Options, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At 0, every fourth step and the end; resumed, once each. Grading changes nothing of the training."""
    line = replace(line, export_at=("4",))
    with signal_after(6):
        train(line, grade=grade_of(line))
    train(line, grade=grade_of(line))
    graded = {
        found["step"]: found for found in read_metrics(tmp_path / "out" / "run") if "eval_task/letters/acc" in found
    }
    assert sorted(graded) == [0, 4, 8, 10]
    for step, model in ((4, tmp_path / "out" / "run" / "exported" / "step-4"), (10, tmp_path / "out")):
        words = ["--tasks", "letters", "--include", str(tmp_path / "tasks"), "--limit", "16", "--device", "cpu"]
        capsys.readouterr()
        assert run(["eval", str(model), *words, "--json", "-o", str(tmp_path / f"{step}.json")]) == 0
        for score in json.loads(capsys.readouterr().out)["rows"]:
            assert graded[step][f"eval_task/letters/{score['metric']}"] == score["value"]
            assert graded[step][f"eval_task_stderr/letters/{score['metric']}"] == score["stderr"]
    table = Page(Path(report(tmp_path / "out")["output"]).read_text()).table("Held-out text during the training of out")
    for step, found in graded.items():
        value, error = found["eval_task/letters/acc"], found["eval_task_stderr/letters/acc"]
        assert f"{value:.4f} ± {error:.4f}" in table[str(step)]
    plain = replace(line, output=str(tmp_path / "plain"), eval_tasks=None, eval_tasks_every=None, include=())
    assert train(plain).progress.last == train(line, grade=grade_of(line)).progress.last


def test_processes_that_share_the_questions_have_the_figures_of_one(line: Options, tmp_path: Path) -> None:
    """17 documents over two processes, by the command line; the weights after 4 steps are the same but for rounding."""
    words = ["train", line.student, "--data", *line.data, "--steps", "4", "--batch", "4", "--seq-len", "32", "--lr",
             "1e-3", "--device", "cpu", "--eval-tasks", "letters", "--include", str(tmp_path / "tasks"),
             "--eval-tasks-every", "4", "--task-limit", "17"]  # fmt: skip
    found = {}
    for nproc in ("1", "2"):
        out = tmp_path / f"by-{nproc}"
        done = subprocess.run(
            [sys.executable, "-m", "minitron_cli", *words, "--nproc", nproc, "-o", str(out)],
            env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-4000:]
        found[nproc] = [
            {name: value for name, value in one.items() if name.startswith("eval_task")}
            for one in read_metrics(out / "run")
            if "eval_task/letters/acc" in one
        ]
    (before, after), (start, end) = found["1"], found["2"]
    assert start == before
    assert end == pytest.approx(after, rel=1e-3)


def test_a_clear_fall_stops_the_run_and_keeps_the_step(line: Options, tmp_path: Path) -> None:
    """A score that falls from 0.9 to 0.5 with errors of 0.05; without the flag the same line goes on to the end."""
    values = iter([0.4, 0.9, 0.5, 0.5, 0.5])

    def grade(subject: Any) -> list[Score]:
        assert subject.model.num_parameters() > 0
        return [Score("letters/acc", next(values), 0.05, True), Score("letters/ppl", 3.0, None, False)]

    with pytest.raises(
        Regressed, match=r"letters/acc 0.5000, 0.9000 at step 4: a fall this large by step 8 is not noise"
    ) as caught:
        train(replace(line, stop_on_regression=True), grade=grade)
    assert "without --stop-on-regression" in caught.value.hint
    assert (tmp_path / "out" / "run" / "step-0000008").is_dir()
    train(line, grade=grade)
    lines = [found for found in read_metrics(tmp_path / "out" / "run") if "eval_task/letters/acc" in found]
    assert [found["step"] for found in lines] == [0, 4, 8, 10]
    assert not any("eval_task_stderr/letters/ppl" in found for found in lines)


def test_what_counts_as_a_regression() -> None:
    lines = [
        {"step": 0},
        {"step": 5, "eval_task/t/acc": 0.6, "eval_task_stderr/t/acc": 0.03},
        {"step": 9, "eval_task/t/acc": 0.5},
    ]
    room = 3 * (0.03**2 + 0.04**2) ** 0.5
    assert not regressions([Score("t/acc", 0.6 - room + 1e-9, 0.04, True)], lines)
    assert regressions([Score("t/acc", 0.6 - room - 1e-9, 0.04, True)], lines) == ["t/acc 0.4500, 0.6000 at step 5"]
    assert not regressions([Score("t/acc", 0.9, 0.04, True), Score("u/acc", 0.0, 0.04, True)], lines)
    assert not regressions([Score("t/acc", 0.1, None, True)], lines)
    assert regressions([Score("t/acc", 0.7, 0.04, False)], lines) == ["t/acc 0.7000, 0.5000 at step 9"]


def test_tasks_are_checked_before_the_run(
    line: Options, toy: Toy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", str(toy("llama")), "--data", *line.data, "--steps", "4", "--batch", "4", "--seq-len", "32"]
    words += ["--device", "cpu", "-o", str(tmp_path / "cli")]
    include = ["--include", str(tmp_path / "tasks")]
    for more, message in (
        (["--eval-tasks", "leters", *include], "no such task: leters"),
        (["--eval-tasks", "letters", "--include", str(tmp_path / "nowhere")], "is not a directory"),
        (["--stop-on-regression"], "--eval-tasks-every, --include and --stop-on-regression need --eval-tasks"),
    ):
        for dry in ([], ["--dry-run"]):
            assert run([*words, *more, *dry]) == 1
            assert message in capsys.readouterr().err
            assert not (tmp_path / "cli").exists()
    assert run([*words, "--eval-tasks", "letters", *include, "--task-limit", "8"]) == 0
    assert re.search(r"task/letters/acc  \d\.\d{4} -> \d\.\d{4}", capsys.readouterr().out)
