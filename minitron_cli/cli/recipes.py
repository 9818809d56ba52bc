"""Where recipes are found, and which options each verb has."""

from pathlib import Path

from minitron_cli.errors import MinitronError, near_matches


def bundled() -> Path:
    """The recipes that come along: inside an installed wheel, or beside the package in a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "recipes"
    return installed if installed.is_dir() else package.parent / "recipes"


def find_recipe(name: str) -> Path:
    """A path as it stands, or the name of a recipe that comes along."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        if not path.is_file():
            raise MinitronError(f"there is no recipe at {path}", f"recipes that come along: {', '.join(names())}")
        return path
    if name not in names():
        raise MinitronError(f"there is no recipe {name!r}", near_matches(name, names()))
    return bundled() / f"{name}.yaml"


def names() -> list[str]:
    """Names of the recipes that come along."""
    return sorted(file.stem for file in bundled().glob("*.yaml"))


def options_by_verb() -> dict[str, set[str]]:
    """The long option names of every verb that a recipe may use, without their dashes."""
    import typer.main

    from minitron_cli.cli.app import app
    from minitron_cli.spec.recipe import VERBS

    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    return {
        verb: {name.removeprefix("--") for p in commands[verb].params for name in p.opts if name.startswith("--")}
        for verb in VERBS
        if verb in commands
    }
