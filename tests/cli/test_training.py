"""`minitron distill` and `minitron train` as they are typed."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from minitron_cli.__main__ import run
from tests.training.runs import write_text

Toy = Callable[..., Path]
SMALL = ["--steps", "3", "--batch", "4", "--seq-len", "32", "--device", "cpu", "--lr", "1e-3"]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "text.jsonl")


def typed(verb: str, model: Path, text: Path, output: Path, *more: str) -> list[str]:
    return [verb, str(model), "--data", str(text), "-o", str(output), *SMALL, *more]


def test_distill_says_what_it_will_do_and_what_came_of_it(
    toy: Toy, text: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    teacher, held_out = toy("llama", hidden_size=66, seed=5), write_text(tmp_path / "held_out.jsonl", seed=2)
    more = ["--teacher", str(teacher), "--eval-data", str(held_out)]
    assert run(typed("distill", toy("llama"), text, tmp_path / "out", *more)) == 0
    out, err = capfd.readouterr()
    assert re.search(r"distill \S+ \([\d,]+ parameters\) <- \S+ \([\d,]+ parameters\)", err)
    assert "3 steps x 4 sequences x 32 tokens = 384 tokens" in err
    assert re.search(r"memory: about .* GB a device", err)
    assert "step 3/3" in err
    assert re.search(r"ce +\d\.\d{4} -> \d\.\d{4}", out)
    assert re.search(r"3 steps, 384 tokens, .* FLOPs", out)
    assert out.strip().splitlines()[-1] == f"next: minitron eval {teacher} {tmp_path / 'out'} --data {held_out}"

    assert run(typed("distill", toy("llama"), text, tmp_path / "out", *more)) == 0
    assert "finished already" in capfd.readouterr().out


def test_train_prints_one_json_object(toy: Toy, text: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(typed("train", toy("llama"), text, tmp_path / "out", "--json", "--from-scratch")) == 0
    facts = json.loads(capfd.readouterr().out)
    assert (facts["steps"], facts["tokens"], facts["finished"]) == (3, 384, True)
    assert facts["loss"]["first"]["ce"] > 0


def test_record_and_learn_from_the_record(
    toy: Toy, text: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    teacher = toy("llama", hidden_size=66, seed=5)
    first = typed("distill", toy("llama"), text, tmp_path / "x", "--teacher", str(teacher))
    assert run([*first, "--record-teacher", str(tmp_path / "top"), "--top-k", "16"]) == 0
    assert f"--teacher {tmp_path / 'top'}" in capfd.readouterr().out
    assert run(typed("distill", toy("llama"), text, tmp_path / "out", "--teacher", str(tmp_path / "top"))) == 0
    assert not (tmp_path / "x").exists()


def test_export_of_a_step(toy: Toy, text: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    given = typed("train", toy("llama"), text, tmp_path / "out")
    assert run(given) == 0
    assert run([*given, "--export-step", "3"]) == 0
    assert (tmp_path / "out-step-3" / "minitron.json").exists()
    assert run([*given, "--export-step", "2"]) == 1
    assert "error: " in capfd.readouterr().err


ERRORS = [
    (["--lr", "0"], "--lr must be above 0; got 0.0"),
    (["--preset", "llama-3-minitron"], "unknown preset"),
    (["--batch", "5", "--micro-batch", "2"], "--batch 5 is 5 sequences per process"),
    (["--batch", "3", "--nproc", "2"], "--batch 3 does not divide over 2 processes"),
    (["--seq-len", "4096"], "longer than the context"),
    (["--data", "nowhere.jsonl"], "nowhere.jsonl"),
    (["--teacher", "nowhere/at/all"], "nowhere/at/all"),
    (["--schedule", "step"], "--schedule must be one of"),
    (["--phase", "soon"], "--phase 'soon' can not be read"),
]


@pytest.mark.parametrize(("more", "message"), ERRORS)
def test_errors_name_the_fault_and_a_way_out(
    more: list[str], message: str, toy: Toy, text: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    teacher = toy("llama", hidden_size=66, seed=5)
    assert run(typed("distill", toy("llama"), text, tmp_path / "out", "--teacher", str(teacher), *more)) == 1
    err = capfd.readouterr().err
    assert f"error: {message}" in err or message in err.split("error: ")[1]
    assert "hint: " in err
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()


def test_without_model_teacher_or_data(toy: Toy, text: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (["distill"], "needs a model"),
        (["train", str(toy("llama"))], "needs --data"),
        (["distill", str(toy("llama")), "--data", str(text)], "needs a teacher"),
    ):
        assert run(arguments) == 1
        assert message in capfd.readouterr().err


def test_a_dry_run_needs_no_torch_and_writes_nothing(toy: Toy, tmp_path: Path) -> None:
    model = str(toy("llama"))
    line = ["distill", model, "--teacher", model, "--data", "x", "--preset", "minitron", "--seq-len", "64"]
    code = (
        f"import sys; from minitron_cli.__main__ import run; code = run({[*line, '--dry-run', '--json']!r}); "
        "assert not {'torch', 'transformers'} & set(sys.modules), 'heavy imports'; sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["steps"] == -(-94_000_000_000 // (1152 * 64))
    assert facts["memory per device"]["total"] > 0
    assert list(tmp_path.iterdir()) == []


def test_every_option_is_a_field_or_says_what_else_it_is() -> None:
    """A table that the two commands are made of may not hold a name that nothing reads."""
    from dataclasses import fields

    from minitron_cli.cli import training_options, training_verbs
    from minitron_cli.training.options import Options

    known = {f.name for f in fields(Options)} | set(training_verbs.CONTROL) | {"record_teacher", "top_k"}
    tables = ("TEACHER", "FROM_SCRATCH", "DATA", "LENGTH", "LOSS", "OPTIMIZER", "RUNNING")
    names = [parameter.name for table in tables for parameter in getattr(training_options, table)]
    assert len(names) == len(set(names))
    assert set(names) <= known
    assert known - set(names) == {"model", "verb", "student", "eps"}, "what can only be set from Python"
