"""The Python API: light to import, strict about names, the same defaults as the command line."""

import inspect
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

from minitron_cli import api
from minitron_cli.cli.app import app
from minitron_cli.errors import MinitronError
from minitron_cli.evaluate.bench_request import BenchRequest
from minitron_cli.evaluate.request import EvalRequest
from minitron_cli.importance.options import Options as ImportanceOptions
from minitron_cli.prune.request import PruneRequest
from minitron_cli.search.flags import search_request
from minitron_cli.training.interrupt import stop_on_signal
from tests.training.runs import write_text

# What the command line alone has, and flags that Python names otherwise.
CONTROL = {"dry_run", "as_json", "form", "output", "model", "models"}


def test_the_import_costs_no_torch() -> None:
    code = (
        "import sys; from minitron_cli.api import importance, prune, distill, evaluate, search;"
        "sys.exit(bool({'torch', 'transformers', 'numpy', 'typer'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(
    ("verb", "target", "only"),
    [
        ("prune", PruneRequest, set()),
        ("eval", EvalRequest, set()),
        ("bench", BenchRequest, set()),
        ("importance", ImportanceOptions, {"include", "task_limit"}),
        ("search", search_request, {"listing", "devices", "tflops", "mfu"}),
    ],
)
def test_every_flag_is_a_keyword_whose_default_stands_once(verb: str, target: object, only: set[str]) -> None:
    known = inspect.signature(target).parameters  # type: ignore[arg-type]
    for flag in typer.main.get_command(app).commands[verb].params:  # type: ignore[attr-defined]
        if flag.name in CONTROL | only:
            continue
        assert known[flag.name].default is not inspect.Parameter.empty, flag.name
        assert not flag.default, f"{flag.name} has a default beside the request's"


def test_values_are_taken_as_a_user_writes_them() -> None:
    given = {"params": "4B", "scores": "s.safetensors", "data": Path("d.jsonl"), "check": True, "seq_len": None}
    assert api._typed(PruneRequest, given) == {
        "params": 4 * 10**9,
        "scores": Path("s.safetensors"),
        "data": ("d.jsonl",),
        "check": True,
    }
    assert api._typed(EvalRequest, {"models": [Path("a"), "b"], "include": "tasks"}) == {
        "models": ("a", "b"),
        "include": (Path("tasks"),),
    }
    assert api._typed(search_request, {"grid": "layers=2:4", "lr": 1e-3, "ffn_factors": "2,3"}) == {
        "grid": ("layers=2:4",),
        "lr": 1e-3,
        "ffn_factors": "2,3",
    }


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: api.prune("m", hiden=3), "unknown option 'hiden'"),
        (lambda: api.distill("s", teacher="t", output="o", data="d", step=3), "unknown option 'step'"),
        (lambda: api.evaluate("m"), "nothing to evaluate"),
        (
            lambda: api.evaluate("m", data="d", seq_len=1, windows=0),
            "--seq-len must be at least 2; got 1; --windows must",
        ),
        (lambda: api.bench("m", repeats=0), "--repeats must be at least 1; got 0"),
        (lambda: api.search("m", speedup=2.0, bench_repeats=0), "--bench-repeats must be at least 1; got 0"),
        (lambda: api.search("m", data="d"), "a search needs a budget"),
        (lambda: api.importance("m", output="o", metric="wat", data="d"), "'wat'"),
    ],
)
def test_what_cannot_be_done_is_an_error_with_a_hint(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(MinitronError, match=message) as caught:
        call()
    assert caught.value.hint


def test_training_without_a_teacher_and_timing(toy, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    text = write_text(tmp_path / "text.jsonl")
    run = api.train(toy("llama"), data=text, output=tmp_path / "out", steps=2, batch=2, seq_len=16, device="cpu")
    assert (run.progress.step, run.options.verb, run.options.teacher) == (2, "train", ())
    found = api.bench([tmp_path / "out", toy("llama")], grid="8x4", repeats=1, warmup_rounds=0, device="cpu")
    assert [row["model"] for row in found["rows"]] == [model["name"] for model in found["models"]]


def test_no_handler_is_installed_where_none_is_wanted() -> None:
    before = signal.getsignal(signal.SIGINT)
    with stop_on_signal(wanted=False) as flag:
        assert signal.getsignal(signal.SIGINT) is before
        assert flag.signal == 0
    with stop_on_signal():
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before
