"""The chain against a stand-in for the commands: what runs, what is skipped, what goes on, what is refused."""

import re
from collections.abc import Sequence
from pathlib import Path

import pytest

import minitron_cli
from minitron_cli.chain.actual_cost import Ended
from minitron_cli.chain.fingerprint import CODE, given_digest
from minitron_cli.chain.run import StepFailed, plan_run, run
from minitron_cli.chain.state import lock
from minitron_cli.errors import MinitronError
from minitron_cli.spec.recipe import VERBS, Recipe, Step


class Commands:
    """Writes to a step's output what it read, and remembers the order; fails or stops where it is told to."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.fail_at: str | None = None

    def __call__(self, arguments: Sequence[str]) -> Ended:
        output = Path(arguments[1] if arguments[0] == "toy" else arguments[-1])
        self.calls.append(output.stem)
        if output.stem == self.fail_at:
            output.mkdir()
            (output / "half").write_text("half")
            return Ended(143)
        inputs = [Path(word) for word in arguments[1:-1] if Path(word).exists() and Path(word) != output]
        text = "|".join([*arguments, *(_text(path) for path in inputs)])
        if output.suffix:
            output.write_text(text)
        else:
            output.mkdir(exist_ok=True)
            (output / "weights").write_text(text)
        return Ended(0)


def _text(path: Path) -> str:
    return path.read_text() if path.is_file() else "".join(sorted(f.read_text() for f in path.iterdir()))


def _recipe(**changes: object) -> Recipe:
    options = {"seed": 0, "samples": 8, "hidden": 4, "steps": 2, **changes}
    return Recipe("r", "", {}, (
        Step("world", "toy", {}, {"seed": options["seed"]}),
        Step("scores", "importance", {"model": ("world",), "data": ("world/weights",)},
             {"samples": options["samples"]}),
        Step("cut", "prune", {"model": ("world",), "scores": ("scores",)}, {"hidden": options["hidden"]}),
        Step("other", "train", {"model": ("world",)}, {}),
        Step("small", "distill", {"student": ("cut",), "teacher": ("world",)}, {"steps": options["steps"]}),
    ))  # fmt: skip


@pytest.fixture
def commands() -> Commands:
    return Commands()


def _run(directory: Path, commands: Commands, recipe: Recipe | None = None, **limits: str) -> list[str]:
    commands.calls.clear()
    run(recipe or _recipe(), directory, commands, lambda text: None, **limits)
    return list(commands.calls)


def test_everything_runs_once_and_is_then_found_done(tmp_path: Path, commands: Commands) -> None:
    assert _run(tmp_path, commands) == ["world", "scores", "cut", "other", "small"]
    assert _run(tmp_path, commands) == []
    assert {d.action for d in plan_run(_recipe(), tmp_path)} == {"done"}


@pytest.mark.parametrize(
    ("change", "again"),
    [
        ({"seed": 1}, ["world", "scores", "cut", "other", "small"]),
        ({"samples": 9}, ["scores", "cut", "small"]),
        ({"hidden": 3}, ["cut", "small"]),
        ({"steps": 3}, ["small"]),
    ],
)
def test_a_changed_option_reruns_exactly_what_depends_on_it(
    tmp_path: Path, commands: Commands, change: dict[str, int], again: list[str]
) -> None:
    _run(tmp_path, commands)
    planned = [d.step.name for d in plan_run(_recipe(**change), tmp_path) if d.action != "done"]
    assert planned == again, "a dry run says the same"
    assert _run(tmp_path, commands, _recipe(**change)) == again


def test_from_makes_a_step_and_what_depends_on_it_again(tmp_path: Path, commands: Commands) -> None:
    _run(tmp_path, commands)
    assert _run(tmp_path, commands, begin="scores") == ["scores", "cut", "small"]


def test_a_failed_step_stops_the_chain_and_is_resumed_with_what_it_left(tmp_path: Path, commands: Commands) -> None:
    commands.fail_at = "cut"
    with pytest.raises(StepFailed) as caught:
        _run(tmp_path, commands)
    assert caught.value.exit_code == 143
    assert commands.calls == ["world", "scores", "cut"]
    commands.fail_at = None
    actions = {d.step.name: d.action for d in plan_run(_recipe(), tmp_path)}
    assert actions == {"world": "done", "scores": "done", "cut": "resume", "other": "run", "small": "run"}
    assert _run(tmp_path, commands) == ["cut", "other", "small"]
    assert (tmp_path / "cut" / "half").exists(), "a resumed step keeps what it had"


def test_a_begun_step_with_other_options_begins_anew(tmp_path: Path, commands: Commands) -> None:
    commands.fail_at = "cut"
    with pytest.raises(StepFailed):
        _run(tmp_path, commands)
    commands.fail_at = None
    _run(tmp_path, commands, _recipe(hidden=3))
    assert not (tmp_path / "cut" / "half").exists()


def test_changed_code_reruns_its_verb_only(tmp_path: Path, commands: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    from minitron_cli.chain import fingerprint

    _run(tmp_path, commands)
    real = fingerprint.code_digest
    monkeypatch.setattr(fingerprint, "code_digest", lambda verb: real(verb) + ("x" if verb == "train" else ""))
    assert _run(tmp_path, commands) == ["other"]


@pytest.mark.parametrize("verb", VERBS)
def test_the_code_of_a_verb_is_all_that_its_packages_import(verb: str) -> None:
    """The imports in their sources, followed through the packages; how a chain walks is not what a step writes."""
    packages = {"distill": "training", "train": "training", "shear": "training", "reference-loss": "training",
                "eval": "evaluate", "bench": "evaluate"}  # fmt: skip
    seen: set[str] = set()
    left = {packages.get(verb, verb)} if verb != "toy" else set()
    while left:
        seen.add(package := left.pop())
        for file in (Path(minitron_cli.__file__).parent / package).rglob("*.py"):
            left |= set(re.findall(r"^ *from minitron_cli\.(\w+)[. ]", file.read_text(), re.MULTILINE)) - seen
    assert seen - {"errors", "pace"} <= set(CODE[verb])


def test_files_of_a_glob_are_inputs_by_their_content(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.jsonl").write_text(name)
    texts = (str(tmp_path / "*.jsonl"), f"{tmp_path}/*.jsonl:0.7", f"{tmp_path}/**/b.jsonl")
    before = [given_digest(text) for text in texts]
    assert len(set(before)) == 3
    (tmp_path / "b.jsonl").write_text("other text")
    assert not set(map(given_digest, texts)) & set(before)
    assert given_digest("wikitext:wikitext-2-raw-v1:train[*]") == given_digest("wikitext:wikitext-2-raw-v1:train[*]")


def test_an_output_changed_by_other_hands_is_named(tmp_path: Path, commands: Commands) -> None:
    _run(tmp_path, commands)
    (tmp_path / "cut" / "weights").write_text("tampered")
    with pytest.raises(MinitronError, match=r"cut/weights changed after step 'cut' had finished"):
        _run(tmp_path, commands)
    assert _run(tmp_path, commands, begin="cut") == ["cut", "small"]


def test_of_many_files_those_that_changed_are_named(tmp_path: Path, commands: Commands) -> None:
    _run(tmp_path, commands)
    text = (tmp_path / "cut" / "weights").read_text()
    (tmp_path / "cut" / "weights").write_text(text)  # a new time, the same content
    (tmp_path / "cut" / "b").write_text("added")
    (tmp_path / "cut" / "a").write_text("added")
    with pytest.raises(MinitronError, match=r"cut/a changed after step 'cut' had finished \(and b\)"):
        _run(tmp_path, commands)


def test_a_touched_but_equal_file_is_still_done(tmp_path: Path, commands: Commands) -> None:
    _run(tmp_path, commands)
    (tmp_path / "cut" / "weights").touch()
    assert _run(tmp_path, commands) == []


def test_a_lost_output_is_made_again(tmp_path: Path, commands: Commands) -> None:
    _run(tmp_path, commands)
    (tmp_path / "scores.safetensors").unlink()
    assert _run(tmp_path, commands) == ["scores"], "the same bytes came out, so nothing after it changed"


def test_until_stops_and_a_foreign_output_is_refused(tmp_path: Path, commands: Commands) -> None:
    assert _run(tmp_path, commands, until="scores") == ["world", "scores"]
    (tmp_path / "cut").mkdir()
    with pytest.raises(MinitronError, match="this run did not make it"):
        _run(tmp_path, commands)


def test_two_runs_do_not_share_a_directory(tmp_path: Path, commands: Commands) -> None:
    with lock(tmp_path), pytest.raises(MinitronError, match="another `minitron run`"):
        _run(tmp_path, commands)
