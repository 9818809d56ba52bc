"""`minitron distill` and `minitron train` as they are typed."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from minitron_cli.__main__ import run
from minitron_cli.cli.training_verbs import _show_plan
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
    assert run(typed("train", toy("llama"), text, tmp_path / "out", "--from-scratch")) == 0
    assert capfd.readouterr().out.splitlines()[-1] == f"next: minitron eval {tmp_path / 'out'} --suite minitron"
    assert (facts["steps"], facts["tokens"], facts["finished"]) == (3, 384, True)
    assert facts["loss"]["first"]["ce"] > 0


def test_record_and_learn_from_the_record(
    toy: Toy, text: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    teacher = toy("llama", hidden_size=66, seed=5)
    first = typed("distill", toy("llama"), text, tmp_path / "x", "--teacher", str(teacher))
    assert run([*first, "--record-teacher", str(tmp_path / "top"), "--top-k", "16", "--dry-run", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["windows"] == 12
    assert run([*first, "--record-teacher", str(tmp_path / "top"), "--top-k", "97", "--dry-run"]) == 1
    assert list(tmp_path.iterdir()) == []
    assert run([*first, "--record-teacher", str(tmp_path / "top"), "--top-k", "16"]) == 0
    following = capfd.readouterr().out.strip().splitlines()[-1].removeprefix("next: minitron ")
    assert f"--teacher {tmp_path / 'top'}" in following
    # What is printed reads the windows that were recorded: typed as it stands, the run may begin.
    assert run([*following.split(), "--device", "cpu", "-o", str(tmp_path / "followed"), "--dry-run"]) == 0
    assert "the top 16 of each token" in capfd.readouterr().out
    assert run(typed("distill", toy("llama"), text, tmp_path / "out", "--teacher", str(tmp_path / "top"))) == 0
    again = typed("distill", toy("llama"), text, tmp_path / "y", "--teacher", str(tmp_path / "top"), "--dry-run")
    assert run([*again, "--top-k", "16"]) == 0
    assert run([*again, "--top-k", "8"]) == 1
    assert "holds the top 16, not the top 8" in capfd.readouterr().err
    assert run([*first, "--record", "sampled:16"]) == 1
    assert "error: --record says what --record-teacher DIR writes" in capfd.readouterr().err
    assert run([*first, "--top-k", "16", "--dry-run"]) == 1
    assert "error: --top-k says how much of a teacher is recorded" in capfd.readouterr().err
    assert run([*first, "--record-teacher", str(tmp_path / "drawn"), "--record", "sampled:16"]) == 0
    assert re.search(r"\d+ bytes a token", capfd.readouterr().out)
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
    (["--lr", "-1"], "--lr must be above 0; got -1.0"),
    (["--lr", "nan"], "--lr must be above 0; got nan"),
    (["--batch", "0"], "--batch must be at least 1; got 0"),
    (["--batch", "1000000000000"], "--batch must be at most 1,048,576"),
    (["--kind", "foo"], "--kind must be one of forward_kl"),
    (["--seed", "99999999999999999999"], "--seed must be at most 4,294,967,295"),
    (["--ce-weight", "inf"], "--ce-weight must be finite"),
    (["--betas", "0.9", "1"], "--betas must be below 1; got (0.9, 1.0)"),
    (["--preset", "llama-3-minitron"], "unknown preset"),
    (["--batch", "5", "--micro-batch", "2"], "--batch 5 is 5 sequences per process"),
    (["--batch", "3", "--nproc", "2"], "--batch 3 does not divide over 2 processes"),
    (["--seq-len", "4096"], "longer than the context"),
    (["--data", "nowhere.jsonl"], "nowhere.jsonl"),
    (["--eval-data", "nowhere.jsonl"], "nowhere.jsonl"),
    (["--eval-data", "{place}/short.jsonl"], "too few tokens for one row of 32"),
    (["--teacher", "nowhere/at/all"], "nowhere/at/all"),
    (["--teacher", "{place}/swapped"], "different tokenizers"),
    (["--teacher", "{place}/wide"], "is not the llama model of its config"),
    (["--schedule", "step"], "--schedule must be one of"),
    (["--phase", "soon"], "--phase 'soon' cannot be read"),
    (["--layer-map", "1:9", "--loss", "logits+hidden"], "not a pair of blocks: 1:9"),
    (["--layer-map", "1:1"], "compares no layers"),
    (["--teacher-device", "tpu-9"], "is not a device"),
    (["--warmup", "3"], "--warmup 3 is as long as the run"),
    (["--export-dtype", "int3"], "--export-dtype must be one of"),
    (["--branch-from", "{place}", "--schedule", "wsd"], "is not a checkpoint"),
    (["-o", "{place}"], "exists and holds no run of minitron"),
]


@pytest.fixture(scope="module")
def place(toy: Toy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Things that do not fit: a held-out text shorter than a window, a teacher of another tokenizer, a wrong config."""
    place = tmp_path_factory.mktemp("place")
    (place / "short.jsonl").write_text('{"text": "short"}\n')
    for name in ("swapped", "wide"):
        shutil.copytree(toy("llama", hidden_size=66, seed=5), place / name)
    tokenizer = json.loads((place / "swapped" / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    (place / "swapped" / "tokenizer.json").write_text(json.dumps(tokenizer))
    config = json.loads((place / "wide" / "config.json").read_text())
    (place / "wide" / "config.json").write_text(json.dumps({**config, "intermediate_size": 90}))
    return place


@pytest.mark.parametrize("dry", [True, False], ids=["dry", "run"])
@pytest.mark.parametrize(("more", "message"), ERRORS)
def test_errors_name_the_fault_and_a_way_out_and_a_dry_run_finds_them(
    more: list[str], message: str, dry: bool, toy: Toy, text: Path, place: Path, tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    teacher, given = toy("llama", hidden_size=66, seed=5), [word.format(place=place) for word in more]
    line = typed("distill", toy("llama"), text, tmp_path / "out", "--teacher", str(teacher), *given)
    if "--teacher" in more:
        del line[line.index("--teacher") : line.index("--teacher") + 2]
    assert run([*line, *(["--dry-run"] if dry else [])]) == 1
    err = capfd.readouterr().err
    assert message in err.split("error: ")[1]
    assert "hint: " in err
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()


def test_a_student_that_is_not_that_of_its_config_is_refused_unless_only_the_config_is_read(
    place: Path, text: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    line = typed("train", place / "wide", text, tmp_path / "out")
    for more in ([], ["--dry-run"]):
        assert run([*line, *more]) == 1
        assert "is not the llama model of its config" in capfd.readouterr().err
    assert run([*line, "--dry-run", "--from-scratch"]) == 0


def test_without_model_teacher_or_data(toy: Toy, text: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (["distill"], "needs a model"),
        (["train", str(toy("llama"))], "needs --data"),
        (["distill", str(toy("llama")), "--data", str(text)], "needs a teacher"),
    ):
        assert run(arguments) == 1
        assert message in capfd.readouterr().err


def test_a_dry_run_says_what_the_run_then_does_and_leaves_no_output(
    toy: Toy, text: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    line = typed("distill", toy("llama"), text, tmp_path / "out", "--teacher", str(toy("llama", seed=5)), "--json")
    assert run([*line, "--dry-run"]) == 0
    planned = json.loads(capfd.readouterr().out)
    assert list(tmp_path.iterdir()) == []
    assert run(line) == 0
    done = json.loads(capfd.readouterr().out)
    assert (planned["steps"], planned["tokens"]) == (done["steps"], done["tokens"])
    assert planned["FLOPs"] == pytest.approx(done["flops"])
    assert planned["memory per device"]["total"] > 0


def test_a_dry_run_is_legible(toy: Toy, text: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(typed("train", toy("llama"), text, tmp_path / "out", "--dry-run")) == 0
    shown = capfd.readouterr().out
    assert "teacher" not in shown.replace("per device teacher", "")
    assert re.search(r"FLOPs +\d\.\d+e\+\d+\n", shown)
    assert not re.search(r"\d{4}\.\d", shown)
    _show_plan({"vocabulary": {"student": 400, "teacher": 49152}, "disk": 49152})
    assert re.findall(r"  (\d.*)", capfd.readouterr().out) == ["400", "49,152", "49.15 KB"]


def test_a_dry_run_refuses_other_options_than_the_run_in_the_output(
    toy: Toy, text: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    line = typed("train", toy("llama"), text, tmp_path / "out")
    assert run(line) == 0
    assert run([*line, "--dry-run"]) == 0
    assert run([*line, "--dry-run", "--seed", "5"]) == 1
    assert "--seed 0 -> 5" in capfd.readouterr().err


def test_a_dry_run_that_does_not_fit_says_the_figures_and_fails(
    toy: Toy, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from minitron_cli.training import announce

    monkeypatch.setattr(announce, "free_memory", lambda device: 1000)
    line = typed("train", toy("llama"), text, tmp_path / "out", "--dry-run", "--json")
    assert run(line) == 1
    out, err = capfd.readouterr()
    assert json.loads(out)["memory per device"]["total"] > 1000
    assert "a step needs about" in err
    assert run([*line, "--no-preflight"]) == 0


def test_every_option_is_a_field_or_says_what_else_it_is() -> None:
    """A table that the two commands are made of may not hold a name that nothing reads."""
    from dataclasses import fields

    from minitron_cli.cli import training_options, training_verbs
    from minitron_cli.training.options import Options

    known = {f.name for f in fields(Options)} | set(training_verbs.CONTROL) | set(training_verbs.RECORDING)
    tables = ("TEACHER", "TEACHER_AT", "FROM_SCRATCH", "DATA", "LENGTH", "MASKS", "LOSS", "OPTIMIZER", "RUNNING")
    names = [parameter.name for table in tables for parameter in getattr(training_options, table)]
    assert len(names) == len(set(names))
    assert set(names) <= known
    assert known - set(names) == {"model", "verb", "student", "sizes", "eps"}, "sizes are the axes' own flags"


def test_a_dry_run_counts_tokens_of_a_vocabulary_in_tokens(
    toy: Toy, text: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from minitron_cli.cli.training_verbs import _show_plan

    vocabulary = {"student": 49152, "teacher": 128256}
    _show_plan({"vocabulary": vocabulary, "memory per device": {"total": 10**9}, "disk": 10**6})
    assert [line.split()[-2:] for line in capfd.readouterr().out.splitlines()] == [
        ["student", "49,152"], ["teacher", "128,256"], ["1.00", "GB"], ["1.00", "MB"]
    ]  # fmt: skip
