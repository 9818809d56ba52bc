"""`--help`: what most people need first, the rest in groups, every option once, defaults from where they are stated."""

import re

import pytest

from minitron_cli.__main__ import run
from minitron_cli.cli import app, training_options
from minitron_cli.training.options import Options

VERBS = (
    "importance",
    "prune",
    "shear",
    "distill",
    "train",
    "reference-loss",
    "eval",
    "bench",
    "search",
    "inspect",
    "verify",
    "run",
    "report",
)


def help_of(verb: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert run([verb, "--help"]) == 0
    return capsys.readouterr().out


def test_the_list_of_commands_fits_a_terminal_of_80_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run(["--help"]) == 0
    commands = capsys.readouterr().out.split("Commands:\n")[1].splitlines()
    assert len(commands) > len(VERBS)
    assert all(line.endswith(".") and not line.endswith("...") for line in commands)


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_is_listed_once_and_the_first_group_is_short(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = help_of(verb, capsys).split("  Examples:")[0]
    command = next(c for c in app.app.registered_commands if c.name == verb)
    flags = re.findall(r"^  (?:-\w, )?(--[\w-]+)", text, re.MULTILINE)
    assert len(flags) == len(set(flags))
    assert {"--help", "--json"} <= set(flags)
    assert len(re.search(r"^Options:\n((?:  .*\n)+)", text, re.MULTILINE).group(1).split("\n  -")) <= 15  # type: ignore[union-attr]
    assert command.cls is not None


def test_the_defaults_of_training_are_those_of_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    text = " ".join(help_of("distill", capsys).split())
    given = Options("distill", "s", ("d",), "o")
    for name, flag in {
        "lr": "--lr",
        "batch": "--batch",
        "seed": "--seed",
        "ce_weight": "--ce-weight",
        "keep": "--keep",
    }.items():
        assert re.search(rf"{flag} <\w+>[^<]*\[default: {getattr(given, name)}\]", text), flag
    assert training_options.defaults().keys() <= set(Options.__dataclass_fields__)
