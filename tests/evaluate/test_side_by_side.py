"""Several models through the command line: comparison rows, failures among them, caching, gates, formats."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from minitron_cli.__main__ import run as command_line
from minitron_cli.checkpoint.seal import sealed
from minitron_cli.cli.app import app
from minitron_cli.errors import MinitronError
from minitron_cli.evaluate import side_by_side, suites
from minitron_cli.evaluate.compare import kept_share
from minitron_cli.evaluate.harness import Score
from minitron_cli.evaluate.options import Request, distinct_names
from minitron_cli.evaluate.results import p_text, results
from tests.evaluate.conftest import write_task


def run(*arguments: str | Path) -> tuple[str, BaseException | None]:
    """stdout and the exception of one command line."""
    result = CliRunner().invoke(app, ["eval", *map(str, arguments)])
    return result.stdout, result.exception


@pytest.fixture
def line(toy, task_dir: Path, corpus: Path) -> list[str]:
    """Two models, one of them named twice, on a group and on text."""
    big, small = str(toy("llama")), str(toy("llama", num_hidden_layers=2))
    return [
        big, small, "--tasks", "letters_one", "--include", str(task_dir), "--data", str(corpus), "--seq-len", "32",
        "--device", "cpu", "--no-throughput",
    ]  # fmt: skip


def test_rows_compare_with_the_first_model(line: list[str], tmp_path: Path) -> None:
    out, error = run(*line, "--json", "-o", tmp_path / "results.json")
    assert error is None
    found = json.loads(out)
    assert sealed(found) == json.loads((tmp_path / "results.json").read_text())
    assert {"minitron", "torch", "transformers"} <= found["versions"].keys()
    assert command_line(["verify", str(tmp_path / "results.json")]) == 0
    first, second = (model["name"] for model in found["models"])
    assert found["reference"] == first
    rows = {(row["model"], row["metric"]): row for row in found["rows"]}
    base, other = rows[first, "acc"], rows[second, "acc"]
    assert base["comparison"] is None
    assert base["chance"] == 0.25
    above = (other["value"] - 0.25) / (base["value"] - 0.25) if base["value"] > 0.25 else None
    assert other["kept"] == (above if above is None else pytest.approx(above))
    difference = other["comparison"]["better"] - other["comparison"]["worse"]
    assert difference / other["num_samples"] == pytest.approx(other["value"] - base["value"])
    loss = found["models"][0]["losses"]
    assert set(loss) == {"ascii", "accents", "all"}
    assert loss["all"]["tokens"] == loss["ascii"]["tokens"] + loss["accents"]["tokens"]
    assert found["models"][0]["loss"] == loss["all"]["nats_per_token"]
    assert loss["all"]["difference"] is None
    small = found["models"][1]["losses"]["all"]
    difference = small["nats_per_token"] - loss["all"]["nats_per_token"]
    assert small["difference"]["difference"] == pytest.approx(difference)
    assert 0 < small["difference"]["stderr"] < 1
    assert found["models"][1]["machine"].endswith("cores, float32")


def test_a_model_against_itself_keeps_everything(line: list[str], toy, tmp_path: Path) -> None:
    twin = tmp_path / "twin"
    twin.symlink_to(toy("llama"))
    out, error = run(line[0], twin, *line[2:], "--against-reference", "--json")
    assert error is None
    found = json.loads(out)
    for row in found["rows"][2:]:
        assert row["kept"] in (1.0, None)
        assert row["comparison"]["p_value"] == 1.0
    assert found["models"][1]["losses"]["all"]["kl"] == pytest.approx(0.0, abs=1e-9)
    assert found["models"][1]["losses"]["all"]["top1_agreement"] == 1.0


def test_a_model_that_fails_does_not_stop_the_others(line: list[str], tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{}")
    out, error = run(line[0], broken, tmp_path / "absent", *line[1:], "--json")
    assert isinstance(error, MinitronError)
    assert "2 of 4 models failed: " in error.message
    found = json.loads(out)
    assert [bool(model["error"]) for model in found["models"]] == [False, True, True, False]
    assert len({row["model"] for row in found["rows"]}) == 2


def test_missing_weights_are_a_failure_not_random_numbers(line: list[str], toy, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for file in toy("llama").iterdir():
        (damaged / file.name).write_bytes(file.read_bytes())
    tensors = load_file(damaged / "model.safetensors")
    tensors.pop("model.layers.1.mlp.up_proj.weight")
    save_file(tensors, damaged / "model.safetensors", {"format": "pt"})
    _, error = run(damaged, *line[2:])
    assert isinstance(error, MinitronError)
    assert "model.layers.1.mlp.up_proj.weight" in error.message


def test_finished_rows_are_kept_and_an_interrupted_run_goes_on(
    line: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MINITRON_CACHE", str(tmp_path))
    line[line.index("letters_one")] = "letters_one,letters_two"
    real, asked = side_by_side.run_request, []

    def interrupted(lm, tasks, request, **settings):
        if len(asked) == 1:
            raise KeyboardInterrupt
        asked.append(request.task)
        return real(lm, tasks, request, **settings)

    monkeypatch.setattr(side_by_side, "run_request", interrupted)
    _, error = run(*line)
    assert asked == ["letters_one"]
    assert error is not None
    rest: list[str] = []
    monkeypatch.setattr(
        side_by_side,
        "run_request",
        lambda lm, tasks, request, **s: rest.append(request.task) or real(lm, tasks, request, **s),
    )
    fresh, _ = run(*line, "--json")
    assert rest == ["letters_two", "letters_one", "letters_two"]
    again, _ = run(*line, "--json")
    assert len(rest) == 3
    assert json.loads(again) == json.loads(fresh)
    run(*line, "--limit", "4")
    assert len(rest) == 7  # other settings are other rows


def test_gates_set_the_exit_code_and_are_told(line: list[str]) -> None:
    out, error = run(*line, "--assert", "letters_one.acc >= 0.0", "--assert", "all.nats_per_token <= 100", "--json")
    assert error is None
    assert all(gate["passed"] for gate in json.loads(out)["gates"])
    _, error = run(*line, "--assert", "all.nats_per_token <= 0.5 * reference")
    assert isinstance(error, MinitronError)
    assert "1 of 1 gates do not hold" in error.message


def test_tables_have_what_was_measured_and_how_far_apart_losses_are(line: list[str], tmp_path: Path) -> None:
    text = tmp_path / "text.jsonl"
    text.write_text("".join(json.dumps({"text": f"the cat number {i} sat on mat {i * 7}"}) + "\n" for i in range(90)))
    line = [*line[:2], "--data", str(text), "--seq-len", "32", "--device", "cpu", "--no-throughput"]
    models = json.loads(run(*line, "--json")[0])["models"]
    losses = [model["losses"]["all"] for model in models]
    apart = losses[1]["nats_per_token"] - losses[0]["nats_per_token"]
    half = 1.96 * losses[1]["difference"]["stderr"]
    for form in ("table", "markdown"):
        out, _ = run(*line, "--format", form)
        assert f"above {models[0]['name']}" in out
        assert out.count(f"{apart:+.4f} ± {half:.4f}") == 1, "the one domain is all of the text"
        assert not {"KL", "accuracy", "tokens/s"} & set(out.split())


@pytest.mark.parametrize(
    ("gate", "hint"),
    [
        ("letters_on.acc >= 0", "letters_one.acc"),
        ("letters_one.ac >= 0", "letters_one.acc"),
        ("ascii.bits_per_bite <= 1", "ascii.bits_per_byte"),
        ("all.kl <= 1", "all"),
        ("model.params <= 1", "model.parameters"),
        ("nobody:all.nats_per_token <= 1", "llama"),
    ],
)
def test_a_mistyped_gate_is_refused_before_anything_is_evaluated(
    line: list[str], gate: str, hint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(side_by_side, "load_model", lambda *args, **settings: pytest.fail("a model was loaded"))
    _, error = run(*line, "--assert", gate)
    assert isinstance(error, MinitronError)
    assert hint in error.hint


def test_a_model_is_not_compared_with_itself(line: list[str]) -> None:
    for arguments in (line[:1] + line[2:], [*line, "--dry-run"]):
        gate = "all.nats_per_token <= 1.0 * reference"
        gate = gate if len(arguments) < len(line) else f"{distinct_names(line[:2])[0]}:{gate}"
        _, error = run(*arguments, "--assert", gate)
        assert isinstance(error, MinitronError)
        assert "the reference, which is" in error.message


def test_a_model_of_nan_is_written_as_null_and_named(
    toy, line: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(toy("llama"), broken)
    tensors = load_file(broken / "model.safetensors")
    save_file({name: tensor * float("nan") for name, tensor in tensors.items()}, broken / "model.safetensors")
    arguments = [line[0], str(broken), *line[6:], "--tasks", "letters_one", "--include", line[5], "--json"]
    assert command_line(["eval", *arguments, "-o", str(tmp_path / "results.json")]) == 0
    shown = capsys.readouterr()
    for text in (shown.out, (tmp_path / "results.json").read_text()):
        found = json.loads(text, parse_constant=lambda word: pytest.fail(f"a bare {word}"))
        assert found["models"][1]["loss"] is None
    assert "are NaN or infinite: null in" in shown.err


def test_the_type_that_was_computed_in_is_stored(toy, task_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    half = str(toy("llama", dtype=torch.bfloat16))
    line = [half, "--tasks", "letters_one", "--include", str(task_dir), "--device", "cpu", "--no-throughput", "--json"]
    assert command_line(["eval", *line]) == 0
    shown = capsys.readouterr()
    (model,) = json.loads(shown.out)["models"]
    assert (model["dtype"], model["stored_dtype"]) == ("float32", "bfloat16")
    assert "in bfloat16, the type of its checkpoint" in shown.err


def test_a_share_is_kept_of_scores_of_which_more_is_better_only(line: list[str], task_dir: Path) -> None:
    score = Score("wiki", "word_perplexity", "none", 123.0, None, False, 0, "1", 8, {}, None)
    found = [
        side_by_side.Measured(name, name, 10, None, None, None, {}, (replace(score, value=value),))
        for name, value in (("big", 8.0), ("small", 123.4))
    ]
    assert results(found, {})["rows"][1]["kept"] is None


def test_an_interruption_says_what_is_kept(
    line: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*args: object, **settings: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(side_by_side, "load_model", interrupt)
    assert command_line(["eval", *line]) == 130
    assert "interrupted: finished rows are kept in" in capsys.readouterr().err


def test_formats(line: list[str]) -> None:
    table, _ = run(*line)
    markdown, _ = run(*line, "--format", "markdown")
    assert "letters_one" in table
    assert markdown.count("| --- |") >= 3
    _, error = run(*line, "--format", "xml")
    assert isinstance(error, MinitronError)


def test_nothing_to_evaluate_says_what_to_give(line: list[str]) -> None:
    _, error = run(line[0])
    assert isinstance(error, MinitronError)
    assert "--tasks" in error.hint


def test_names_are_short_and_distinct() -> None:
    assert distinct_names(["runs/a", "runs/b"]) == ["a", "b"]
    assert distinct_names(["one/student", "two/student"]) == ["one/student", "two/student"]


def test_p_values_without_false_precision() -> None:
    assert [p_text(p) for p in (0.0, 0.00123, 0.0499, 0.5)] == ["<0.0001", "0.0012", "0.0499", "0.50"]


def test_a_task_that_fails_leaves_the_rest(line: list[str], tmp_path: Path) -> None:
    write_task(tmp_path, "broken", dataset_path=str(tmp_path / "empty"), dataset_kwargs={})
    (tmp_path / "empty").mkdir()
    line[line.index("letters_one")] = "broken,letters_one"
    out, error = run(*line, "--include", tmp_path, "--json")
    assert isinstance(error, MinitronError)
    assert "the data of broken cannot be loaded" in error.message
    found = json.loads(out)
    assert {row["task"] for row in found["rows"]} == {"letters_one"}
    assert all(model["loss"] and "broken" in model["error"] for model in found["models"])


def test_code_is_refused_by_name_and_left_out_of_a_suite(
    line: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_task(tmp_path, "coder", unsafe_code=True)
    monkeypatch.setitem(suites.SUITES, "both", (Request("letters_one", 0, ("acc",)), Request("coder", 0, ("acc",))))
    out, error = run(*line[:2], *line[4:], "--suite", "both", "--include", tmp_path, "--json")
    assert error is None
    assert {row["task"] for row in json.loads(out)["rows"]} == {"letters_one"}
    line[line.index("letters_one")] = "letters_one, coder"
    out, error = run(*line, "--include", tmp_path, "--json")
    assert isinstance(error, MinitronError)
    assert "coder runs code" in error.message
    assert out == ""
    out, error = run(*line, "--include", tmp_path, "--json", "--confirm-run-unsafe-code")
    assert error is None
    assert {row["task"] for row in json.loads(out)["rows"]} == {"letters_one", "coder"}


def test_a_dry_run_shows_the_plan_and_checks_what_the_run_checks(
    line: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("minitron_cli.evaluate.tasks._check_data", lambda tasks, names: None)  # it asks the hub
    arguments = ["eval", *line, "--suite", "minitron", "--limit", "8", "--dry-run", "--json", "-o", str(tmp_path / "r")]
    assert command_line(arguments) == 0
    plan = json.loads(capsys.readouterr().out)
    assert not (tmp_path / "r").exists()
    rows = {row["task"]: row for row in plan["requests"]}
    assert (rows["arc_challenge"]["shots"], rows["arc_challenge"]["metrics"]) == (25, ["acc_norm"])
    assert (rows["mbpp_zero_shot"]["shots"], rows["winogrande"]["limit"]) == (0, 8)
    for wrong, told in [
        (["nowhere"], "nowhere is not a model directory"),
        (["--tasks", "nosuch"], "no such task: nosuch"),
        (["--assert", "nosuch.acc > 0"], "nosuch"),
        (["--seq-len", "9999"], "--seq-len 9999 is longer than the context"),
        (["--device", "cuda:99"], "cuda:99"),
    ]:
        assert command_line(["eval", *line, *wrong, "--dry-run"]) == 1
        assert told in capsys.readouterr().err


@pytest.mark.parametrize("limit", ["0", "-3"])
def test_a_limit_that_leaves_nothing(line: list[str], limit: str) -> None:
    _, error = run(*line, "--limit", limit)
    assert isinstance(error, MinitronError)
    assert "--limit" in error.message


@pytest.mark.parametrize(
    ("value", "base", "chance", "kept"),
    [
        (0.5, 0.75, 0.25, 0.5),
        (0.2, 0.75, 0.25, -0.1),
        (0.3, 0.6, None, 0.5),
        (0.4, 0.25, 0.25, None),
        (1, 0, None, None),
    ],
)
def test_what_is_kept_counts_from_chance(value: float, base: float, chance: float | None, kept: float | None) -> None:
    assert kept_share(value, base, chance) == (kept if kept is None else pytest.approx(kept))


def test_a_task_is_compared_at_the_same_number_of_shots() -> None:
    many, none = (
        Score("t", "acc", "none", value, None, True, shots, "1", 8, {}, None) for value, shots in ((0.8, 5), (0.4, 0))
    )
    found = [side_by_side.Measured(name, name, 10, None, None, None, {}, (many, none)) for name in ("big", "small")]
    assert [row["kept"] for row in results(found, {})["rows"]] == [None, None, 1.0, 1.0]


def test_results_are_kept_where_a_gate_names_a_task_that_failed(line: list[str], tmp_path: Path) -> None:
    write_task(tmp_path, "broken", dataset_path=str(tmp_path / "empty"), dataset_kwargs={})
    (tmp_path / "empty").mkdir()
    line[line.index("letters_one")] = "letters_one,broken"
    output = tmp_path / "results.json"
    _, error = run(*line, "--include", tmp_path, "--assert", "broken.acc > 0", "-o", output)
    assert isinstance(error, MinitronError)
    assert {row["task"] for row in json.loads(output.read_text())["rows"]} == {"letters_one"}


def test_the_same_text_in_other_domains_is_measured_again(line: list[str], corpus: Path, tmp_path: Path) -> None:
    other = tmp_path / "text.jsonl"
    other.write_text(corpus.read_text().replace('"accents"', '"letters"'))
    domains = []
    for text in (corpus, other):
        out, error = run(line[0], "--data", text, "--seq-len", "32", "--device", "cpu", "--no-throughput", "--json")
        assert error is None
        domains.append(set(json.loads(out)["models"][0]["losses"]))
    assert domains == [{"ascii", "accents", "all"}, {"ascii", "letters", "all"}]
