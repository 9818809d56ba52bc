"""The table of what training added: tokens and hours from the metrics, scores from the results, in order."""

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path
from statistics import median

import pytest

from minitron_cli.errors import MinitronError
from minitron_cli.report import text
from minitron_cli.report.page import page
from minitron_cli.report.read.collect import collect
from minitron_cli.report.read.values import Run
from minitron_cli.report.sections.trajectory import trajectories
from minitron_cli.report.write import report
from minitron_cli.training.metrics import read_metrics
from tests.report.fake_recipe import TOKENS_PER_STEP
from tests.report.reading import Page


def with_exported(run: Run, steps: tuple[int, ...]) -> Run:
    """The run, its evaluation with students of `small` that were exported on the way as well."""
    (results,) = run.evaluations
    content = copy.deepcopy(dict(results.content))
    base = next(entry for entry in content["models"] if entry["name"] == "small")
    for step in steps:
        name = f"step-{step}"
        path = f"{base['path']}/run/exported/{name}"
        content["models"].append({**base, "name": name, "path": path, "loss": 9.0 - step / 100})
        rows = [row for row in content["rows"] if row["model"] == "small"]
        content["rows"] += [{**row, "model": name, "value": step / 1000, "stderr": 0.0125} for row in rows]
    return replace(run, evaluations=(replace(results, content=content),))


@pytest.mark.parametrize("price", [None, 2.5])
def test_the_table_says_what_each_token_count_came_to(price: float | None, fake_run: Path) -> None:
    run = with_exported(collect(fake_run), (20, 10))
    (table,) = trajectories(run.evaluations[0], run, price)
    shown = Page(page(run, price)).table("What the training of small added")
    assert list(shown) == ["large", "small-pruned", "step-10", "step-20", "small"]
    lines = [line for line in read_metrics(fake_run / "small" / "run") if "loss" in line]
    speed, total = median(line["tokens_per_second"] for line in lines), lines[-1]["tokens"]
    for name, tokens in (("step-10", 10 * TOKENS_PER_STEP), ("step-20", 20 * TOKENS_PER_STEP), ("small", total)):
        hours = tokens / speed / 3600
        cost = "" if price is None else f" costs {hours * price:,.2f}"
        assert shown[name][1] == text.count(tokens)
        assert shown[name][-1] == f"{text.three(hours)}{cost}"
    assert shown["step-10"][2:4] == ["8.9000", "0.0100 ± 0.0125"]
    assert shown["large"][1] == shown["small-pruned"][-1] == text.NOTHING
    assert (price is None) == ("an hour" not in table.caption)


def test_results_that_are_no_step_of_the_run_are_shown_where_they_are_named(fake_run: Path, tmp_path: Path) -> None:
    """What was trained and evaluated line by line, without a recipe."""
    file, student, shown = tmp_path / "figures.json", fake_run / "small", tmp_path / "small.html"
    content = with_exported(collect(fake_run), (20, 10)).evaluations[0].content
    file.write_text(json.dumps(content).replace(f"runs/{fake_run.name}", str(fake_run)))
    alone = report(student, shown)
    assert (alone["evaluations"], alone["models"][-1]["accuracy"]) == ([], None)
    beside = report(student, shown, results=[file])
    small = next(entry for entry in content["models"] if entry["name"] == "small")
    assert (beside["evaluations"], beside["models"][-1]["accuracy"]) == (["figures"], small["accuracy"])
    assert {"step-10", "step-20", "small"} <= Page(shown.read_text()).table("What the training of small added").keys()
    assert report(fake_run, shown, results=[file])["evaluations"][-1] == "figures"
    with pytest.raises(MinitronError, match="there is no file"):
        report(student, shown, results=[tmp_path / "nowhere.json"])


def test_an_evaluation_without_such_students_has_no_table(fake_run: Path) -> None:
    run = collect(fake_run)
    assert trajectories(run.evaluations[0], run, None) == []
    with pytest.raises(MinitronError, match="--gpu-price"):
        report(fake_run, dry_run=True, gpu_price=-1.0)


def test_students_of_a_run_that_has_logged_nothing_yet(fake_run: Path, tmp_path: Path) -> None:
    """One that logs more rarely than it exports and evaluates."""
    shutil.copytree(fake_run, tmp_path / "run")
    metrics = tmp_path / "run" / "small" / "run" / "metrics.jsonl"
    metrics.write_text("".join(line for line in metrics.open() if '"loss"' not in line))
    assert "step-10" in Page(page(with_exported(collect(tmp_path / "run"), (10,)))).table("What the training of small")
