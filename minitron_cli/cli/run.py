"""`minitron run`: a recipe's chain of command lines."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from minitron_cli.cli.common import argument, bytes_text, count_text, emit, examples, option, say, table
from minitron_cli.errors import MinitronError

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
    tflops: Annotated[float, option("--gpu-tflops", help="peak of one GPU, for the hours of --dry-run")] = 989.0,
    mfu: Annotated[float, option("--mfu", help="share of that peak that training reaches")] = 0.4,
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
        facts = _plan_facts(chain, plan_run(chain, directory, begin, until), directory, tflops * 1e12 * mfu)
        emit(facts, as_json, lambda: _show_plan(facts))
        return
    run(chain, directory, _execute, say, begin, until)
    family = write_family(chain, directory)
    emit(family, as_json, lambda: table(*summarise(family)))
    if not as_json:
        print(f"{directory / 'family.json'}: the family, its lineage and its figures")


def _plan_facts(chain: Any, decisions: list[Any], directory: Path, flops_per_second: float) -> dict[str, Any]:
    from minitron_cli.chain.estimate import estimate
    from minitron_cli.chain.family import known_configs
    from minitron_cli.spec.recipe import command_line

    costs = {cost.step.name: cost for cost in estimate(chain, known_configs(chain, directory))}
    steps = []
    for decision in decisions:
        cost = costs[decision.step.name]
        try:
            line = shlex.join(["minitron", *command_line(chain, decision.step, directory)])
        except MinitronError as missing:  # a declared input without a value: the plan is still worth showing
            line = missing.message
        steps.append({
            "step": decision.step.name,
            "action": decision.action,
            "reason": decision.reason,
            "parameters": cost.model.parameters if cost.model else None,
            "non_embedding_parameters": cost.model.non_embedding if cost.model else None,
            "tokens": cost.tokens,
            "flops": cost.flops,
            "gpu_hours": cost.flops / flops_per_second / 3600,
            "disk_bytes": cost.disk_bytes,
            "command": line,
        })  # fmt: skip
    return {"run": str(directory), "steps": steps}


def _show_plan(facts: dict[str, Any]) -> None:
    steps = facts["steps"]
    rows = [
        [
            s["step"],
            s["action"],
            s["reason"],
            *_costs(s["parameters"], s["tokens"], s["flops"], s["gpu_hours"], s["disk_bytes"]),
        ]
        for s in steps
    ]
    todo = [s for s in steps if s["action"] != "done"]
    total = [sum(s[key] for s in todo) for key in ("tokens", "flops", "gpu_hours", "disk_bytes")]
    columns = ["step", "action", "why", "makes", "tokens", "FLOPs", "GPU hours", "disk"]
    table(columns, [*rows, ["to do", "", "", *_costs(None, *total)]])


def _costs(parameters: int | None, tokens: float, flops: float, hours: float, disk: float) -> list[str]:
    return [
        count_text(parameters) if parameters else "",
        count_text(tokens) if tokens else "",
        f"{flops:.1e}" if flops else "",
        (f"{hours:,.0f}" if hours >= 10 else f"{hours:.2g}") if flops else "",
        bytes_text(disk) if disk else "",
    ]


def _execute(arguments: Sequence[str]) -> int:
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
