"""The harness through us equals the harness called directly; tasks are found, and refused, with reasons."""

import logging
import shutil
import sys
from pathlib import Path

import pytest

from minitron_cli.errors import MinitronError
from minitron_cli.evaluate import harness, tasks
from minitron_cli.evaluate.harness import make_lm, run_request
from minitron_cli.evaluate.model import load_model
from minitron_cli.evaluate.options import Request
from minitron_cli.evaluate.suites import MINITRON, QUICK
from minitron_cli.evaluate.tasks import OWN_TASKS, find_tasks
from tests.evaluate.conftest import QUESTIONS, write_task


@pytest.fixture(scope="module")
def lm(toy):
    return make_lm(load_model(toy("llama"), device="cpu"), 8)


def direct(path: Path, names: list[str], include: Path, batch_size: int = 8) -> dict:
    """The harness's own front door: it loads the model and the tasks itself."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(include), include_defaults=False)
    arguments = {"pretrained": str(path), "dtype": "float32"}
    found = lm_eval.simple_evaluate(
        model="hf", model_args=arguments, tasks=names, device="cpu", batch_size=batch_size, task_manager=manager
    )
    assert found is not None
    return found["results"]


def test_equals_the_harness_called_directly(lm, toy, task_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = run_request(lm, find_tasks(["letters_one"], [task_dir]), Request("letters_one"))
    monkeypatch.chdir(task_dir)  # where the harness looks for the data file
    theirs = direct(toy("llama"), ["letters_one"], task_dir)["letters_one"]
    assert {score.metric for score in ours} == {"acc", "acc_norm"}
    for score in ours:
        assert score.value == theirs[f"{score.metric},none"]
        assert score.stderr == theirs[f"{score.metric}_stderr,none"]
        assert len(score.samples) == score.num_samples == QUESTIONS
        assert sum(score.samples.values()) / QUESTIONS == score.value


def test_a_group_has_its_own_score_and_the_samples_of_its_tasks(lm, task_dir: Path) -> None:
    found = find_tasks(["letters"], [task_dir])
    group, *members = run_request(lm, found, Request("letters"))
    parts = [run_request(lm, found, Request(name, metrics=("acc",)))[0] for name in ("letters_one", "letters_two")]
    assert group.value == pytest.approx(sum(part.value for part in parts) / 2)
    assert group.samples == parts[0].samples | parts[1].samples
    assert group.num_samples == 2 * QUESTIONS
    assert [(score.task, score.group, score.value) for score in members] == [
        (part.task, "letters", part.value) for part in parts
    ]


@pytest.mark.parametrize(
    ("changes", "chance"),
    [
        ({}, 0.25),
        ({"doc_to_choice": "{{choices[:2]}}", "doc_to_target": 0}, 0.5),
        ({"metric_list": [{"metric": "acc"}, {"metric": "acc_mutual_info"}]}, 0.25),
        ({"output_type": "loglikelihood", "doc_to_target": "a", "metric_list": [{"metric": "acc"}]}, None),
    ],
)
def test_the_chance_level_is_that_of_a_uniform_guess(lm, tmp_path: Path, changes: dict, chance: float | None) -> None:
    write_task(tmp_path, "guessed", **changes)
    scores = run_request(lm, find_tasks(["guessed"], [tmp_path]), Request("guessed", metrics=("acc",)))
    assert scores[0].chance == chance


def test_limit_and_shots_reach_the_harness(lm, task_dir: Path) -> None:
    found = find_tasks(["letters_one"], [task_dir])
    (score,) = run_request(lm, found, Request("letters_one", shots=3, metrics=("acc",), limit=5))
    assert (score.num_samples, score.shots) == (5, 3)


def test_what_is_patched_is_put_back(lm, task_dir: Path) -> None:
    from lm_eval import evaluator

    def patched() -> tuple[object, ...]:
        return (
            evaluator.add_env_info,
            evaluator.get_git_commit_hash,
            logging.getLogger("lm_eval").level,
            sys.stdout,
            sys.stderr,
        )

    before = patched()
    with pytest.raises(MinitronError, match="has no metric bleu"):
        run_request(lm, find_tasks(["letters_one"], [task_dir]), Request("letters_one", metrics=("bleu",)))
    assert patched() == before


def test_output_stays_clean_outside_a_git_repository(
    lm, task_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    run_request(lm, find_tasks(["letters_one"], [task_dir]), Request("letters_one"))
    printed = capfd.readouterr()
    assert printed.out == ""
    assert "fatal" not in printed.err


def test_a_moved_task_directory_still_works_and_the_current_directory_is_the_fallback(
    task_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(task_dir, moved)
    found = find_tasks(["letters_one"], [moved])
    assert found.index["letters_one"].cfg["dataset_kwargs"]["data_files"]["validation"].startswith(str(moved))
    assert found.identity("letters_one") == find_tasks(["letters_one"], [task_dir]).identity("letters_one")
    (moved / "letters_one.jsonl").rename(tmp_path / "letters_one.jsonl")
    monkeypatch.chdir(tmp_path)
    find_tasks(["letters_one"], [moved])
    monkeypatch.chdir("/")
    with pytest.raises(MinitronError, match=r"letters_one reads letters_one.jsonl"):
        find_tasks(["letters_one"], [moved])


def test_identity_follows_the_data_and_the_config(tmp_path: Path) -> None:
    seen = set()
    for seed, changes in ((1, {}), (2, {}), (1, {"doc_to_text": "Q: {{context}}"})):
        write_task(tmp_path, "letters", seed, **changes)
        seen.add(find_tasks(["letters"], [tmp_path]).identity("letters"))
    assert len(seen) == 3


@pytest.mark.parametrize("text", ["task: mine\n  foo: [", "- mine"])
def test_a_broken_yaml_is_named_with_the_task_that_is_missing(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "_build", lambda paths, include_defaults, real=tasks._build: real(paths, False))
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(MinitronError, match=r"no such task: mine; .*mine\.yaml cannot be read"):
        find_tasks(["mine"], [tmp_path])


def test_an_unknown_task_gets_the_nearest_names(task_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "_build", lambda paths, include_defaults, real=tasks._build: real(paths, False))
    with pytest.raises(MinitronError, match="no such task: leters_one") as caught:
        find_tasks(["leters_one", "letters_two"], [task_dir])
    assert "letters_one" in caught.value.hint


def test_a_task_of_the_hub_fails_at_once_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_task(tmp_path, "remote", dataset_path="nobody/nothing-like-this", dataset_kwargs={})
    with pytest.raises(MinitronError, match=r"remote \(nobody/nothing-like-this\)"):
        find_tasks(["remote"], [tmp_path])


def test_code_is_run_only_when_confirmed(lm, tmp_path: Path) -> None:
    write_task(tmp_path, "coder", unsafe_code=True)
    found = find_tasks(["coder"], [tmp_path])
    with pytest.raises(MinitronError, match="coder runs code") as caught:
        run_request(lm, found, Request("coder"))
    assert "--confirm-run-unsafe-code" in caught.value.hint
    assert run_request(lm, found, Request("coder"), unsafe_code=True)


def test_without_the_harness_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(MinitronError, match="not installed") as caught:
        tasks.require_harness()
    assert "pip install" in caught.value.hint


def test_our_own_task_files_parse_and_the_suites_name_them() -> None:
    found = tasks._build([OWN_TASKS], include_defaults=False)
    own = {"humaneval_20", "mbpp_zero_shot", "xlsum_english_fifth"}
    assert set(found.index) == own
    assert own < {request.task for request in MINITRON}
    assert not own & {request.task for request in QUICK}
    assert all(found.index[name].cfg.get("unsafe_code", False) == (name != "xlsum_english_fifth") for name in own)


def test_the_summary_metric_and_the_fixed_fifth() -> None:
    import datasets
    from lm_eval.tasks._yaml_loader import load_yaml

    config = load_yaml(OWN_TASKS / "xlsum_english_fifth.yaml")
    rouge = config["metric_list"][0]["metric"]
    assert rouge(["the cat sat on the mat"], ["the cat sat on the mat"]) == 100.0
    # longest common subsequence "the cat on mat": 4 of 4 predicted, 4 of 6 wanted
    assert rouge(["the cat sat on the mat"], ["the cat on mat"]) == pytest.approx(100 * 2 * 4 / (4 + 6))
    rows = datasets.Dataset.from_dict({"n": list(range(103))})
    fifth = config["process_docs"](rows)
    assert len(fifth) == 20
    assert fifth["n"] == sorted(set(fifth["n"])) == config["process_docs"](rows)["n"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "metric", "value"), [("stories_next", "acc_norm", 0.4215), ("stories_lastword", "acc", 0.2033)]
)
def test_the_real_checkpoint_has_its_known_scores(
    shared_data: Path, monkeypatch: pytest.MonkeyPatch, name: str, metric: str, value: float
) -> None:
    found = find_tasks([name], [shared_data / "tasks"])
    lm = make_lm(load_model(shared_data / "stories260K", device="cpu"))
    (score,) = run_request(lm, found, Request(name, metrics=(metric,)))
    assert round(score.value, 4) == value
    assert harness.find_batch_size(load_model(shared_data / "stories260K", device="cpu")) == 64


def test_programs_are_scored_per_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scorer of the code tasks, with the executor replaced by one that only compares."""
    from lm_eval.tasks._yaml_loader import load_yaml

    config = load_yaml(OWN_TASKS / "humaneval_20.yaml")
    metric = config["metric_list"][0]["metric"]
    complete = config["filter_list"][0]["filter"][0]["filter_fn"]

    class Executor:
        def compute(self, references, predictions, k):
            passed = [sum(program == tests for program in programs) for programs, tests in zip(predictions, references)]
            return [{"pass@1": sum(p / len(x) for p, x in zip(passed, predictions)) / len(passed)}]

    monkeypatch.setitem(metric.__globals__, "_code_eval", Executor)
    assert complete([["1", "2"]], [{"prompt": "x = "}]) == [["x = 1", "x = 2"]]
    assert metric(references=["x = 1"], predictions=[["x = 1", "x = 2", "x = 1", "x = 3"]]) == 0.5
    single = load_yaml(OWN_TASKS / "mbpp_zero_shot.yaml")["metric_list"][0]["metric"]
    monkeypatch.setitem(single.__globals__, "_code_eval", Executor)
    assert [single(references=["a"], predictions=[text]) for text in ("a", "b")] == [1.0, 0.0]
