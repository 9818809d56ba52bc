"""`minitron run`: a recipe's chain of command lines."""

import shlex
from pathlib import Path
from typing import Annotated, Any

from minitron_cli.cli.common import argument, emit, examples, option, say, table

NAME = "run"
EXAMPLES = examples("minitron run tiny", "minitron run recipes/tiny.yaml --set middle.steps=100 --print-commands")


def command(
    recipe: Annotated[str, argument("RECIPE", help="a YAML file, or the name of one that comes along")],
    output: Annotated[Path | None, option("-o", "--output", help="run directory [default: runs/RECIPE]")] = None,
    settings: Annotated[list[str] | None, option("--set", help="STEP.option=value, or input=path; repeatable")] = None,
    begin: Annotated[str | None, option("--from", help="make this step and what follows from it again")] = None,
    until: Annotated[str | None, option("--until", help="stop behind this step")] = None,
    print_commands: Annotated[
        bool, option("--print-commands", help="print the chain as shell lines, run nothing")
    ] = False,
    dry_run: Annotated[bool, option("--dry-run", help="only say what would be run, and why")] = False,
    as_json: Annotated[bool, option("--json", help="one JSON object on stdout")] = False,
) -> None:
    """Run a chain of commands: what is done is skipped, what was interrupted goes on, what changed is made again."""
    from minitron_cli.chain.family import summarise, write_family
    from minitron_cli.chain.run import plan_run, run
    from minitron_cli.cli.recipes import find_recipe, options_by_verb
    from minitron_cli.spec.recipe import command_line
    from minitron_cli.spec.recipe_file import apply_settings, load_recipe

    options = options_by_verb()
    chain = apply_settings(load_recipe(find_recipe(recipe), options), settings or [], options)
    directory = output or Path("runs") / chain.name
    if print_commands:
        for step in chain.steps:
            print("minitron " + shlex.join(command_line(chain, step, directory)))
        return
    if dry_run:
        decisions = plan_run(chain, directory, begin, until)
        facts = {"run": str(directory), "steps": [_facts(chain, d, directory) for d in decisions]}
        emit(facts, as_json, lambda: _show_plan(facts))
        return
    run(chain, directory, _execute, say, begin, until)
    family = write_family(chain, directory)
    emit(family, as_json, lambda: table(*summarise(family)))
    if not as_json:
        print(f"{directory / 'family.json'}: the family, its lineage and its figures")


def _facts(chain: Any, decision: Any, directory: Path) -> dict[str, Any]:
    from minitron_cli.spec.recipe import command_line

    line = "minitron " + shlex.join(command_line(chain, decision.step, directory))
    return {"step": decision.step.name, "action": decision.action, "reason": decision.reason, "command": line}


def _show_plan(facts: dict[str, Any]) -> None:
    table(["step", "action", "why"], [[s["step"], s["action"], s["reason"]] for s in facts["steps"]])


def _execute(arguments: list[str]) -> int:
    """Run one step in a process of its own: its memory is freed at its end, and a crash is only the step's.

    SIGTERM is handed on, so that training saves before the chain ends; SIGINT reaches the whole terminal group anyway.
    """
    import signal
    import subprocess
    import sys

    say("$ minitron " + shlex.join(arguments))
    with subprocess.Popen([sys.executable, "-m", "minitron_cli", *arguments], stdout=sys.stderr) as child:
        previous = signal.signal(signal.SIGTERM, lambda *_: child.terminate())
        try:
            return child.wait()
        except KeyboardInterrupt:
            child.wait()
            raise
        finally:
            signal.signal(signal.SIGTERM, previous)
