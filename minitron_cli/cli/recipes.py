"""`minitron recipes`: the bundled recipes, where they are, and which options each verb has."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from minitron_cli.cli.common import argument, command_line, emit, examples, option, table
from minitron_cli.cli.usage import PARSER_ERROR, as_error
from minitron_cli.errors import MinitronError, near_matches

NAME = "recipes"
app = typer.Typer(rich_markup_mode=None, no_args_is_help=True, help="The bundled recipes.")


@app.command("ls", epilog=examples("minitron recipes ls", "minitron recipes ls --json | jq -r '.recipes[].name'"))
def ls(as_json: Annotated[bool, option("--json", help="one JSON object on stdout")] = False) -> None:
    """List the recipes that `minitron run NAME` knows."""
    from minitron_cli.spec.recipe_file import load_recipe

    found = [{"name": name, "about": load_recipe(bundled() / f"{name}.yaml").about} for name in names()]
    emit(
        {"recipes": found},
        as_json,
        lambda: table(["recipe", "what it makes"], [[r["name"], r["about"]] for r in found]),
    )


@app.command("cp", epilog=examples("minitron recipes cp tiny", "minitron recipes cp qwen3-8b-to-6b my-family.yaml"))
def cp(
    name: Annotated[str, argument("RECIPE", help="a name from `minitron recipes ls`")],
    target: Annotated[Path | None, argument("FILE", help="where to [default: RECIPE.yaml]")] = None,
) -> None:
    """Copy a recipe, to change it."""
    path = target or Path(f"{name}.yaml")
    if path.exists():
        raise MinitronError(f"{path} exists already", "give another file name")
    path.write_text(find_recipe(name).read_text(encoding="utf-8"), encoding="utf-8")
    print(f"{path}: a copy of {name}; next: {command_line('run', path, '--dry-run')}")


def bundled() -> Path:
    """The bundled recipes: inside an installed wheel, or beside the package in a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "recipes"
    return installed if installed.is_dir() else package.parent / "recipes"


def find_recipe(name: str) -> Path:
    """A path, or the name of a bundled recipe."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        if not path.is_file():
            raise MinitronError(f"there is no recipe at {path}", f"bundled recipes: {', '.join(names())}")
        return path
    if name not in names():
        raise MinitronError(f"there is no recipe {name!r}", near_matches(name, names()))
    return bundled() / f"{name}.yaml"


def names() -> list[str]:
    """Names of the bundled recipes."""
    return sorted(file.stem for file in bundled().glob("*.yaml"))


def check_values(recipe: Any, commands: Mapping[str, Any]) -> None:
    """Have each verb's own parser (`commands` by name) read its steps' options, before the first step runs."""
    from minitron_cli.spec.recipe import written

    for step in recipe.steps:
        try:
            commands[step.verb].make_context(f"minitron {step.verb}", written(step, str, step.output)[1:])
        except PARSER_ERROR as error:
            usage = as_error(error)
            raise MinitronError(f"step {step.name!r}: {usage.message}", usage.hint) from error


def options_by_verb(commands: Mapping[str, Any]) -> dict[str, set[str]]:
    """The long option names of every verb that a recipe may use, without their dashes."""
    from minitron_cli.spec.recipe import VERBS

    return {
        verb: {name.removeprefix("--") for p in commands[verb].params for name in p.opts if name.startswith("--")}
        for verb in VERBS
        if verb in commands
    }
