"""`minitron run`: a recipe's chain of command lines."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from minitron_cli.cli.common import argument, emit, examples, option, say, table
from minitron_cli.cli.costs import GPU_TFLOPS, GPU_WORDS, MFU, hours_at, show_plan, show_took
from minitron_cli.errors import MinitronError
from minitron_cli.spec.recipe import FAMILY

NAME = "run"
EXAMPLES = examples("minitron run tiny", "minitron run recipes/tiny.yaml --set middle.steps=100 --print-commands")


def command(
    context: typer.Context,
    recipe: Annotated[str, argument("RECIPE", help="a YAML file, or the name of a bundled one")],
    output: Annotated[Path | None, option("-o", "--output", help="run directory [default: runs/RECIPE]")] = None,
    settings: Annotated[list[str] | None, option("--set", help="STEP.option=value, or input=path; repeatable")] = None,
    begin: Annotated[str | None, option("--from", help="redo this step and every step that depends on it")] = None,
    until: Annotated[str | None, option("--until", help="stop after this step")] = None,
    print_commands: Annotated[
        bool, option("--print-commands", help="print the chain as shell lines, run nothing")
    ] = False,
    dry_run: Annotated[bool, option("--dry-run", help="only say what would be run, and why")] = False,
    tflops: Annotated[float, option("--gpu-tflops", help=GPU_WORDS[0])] = GPU_TFLOPS,
    mfu: Annotated[float, option("--mfu", help=GPU_WORDS[1])] = MFU,
    as_json: Annotated[bool, option("--json", help="one JSON object on stdout")] = False,
) -> None:
    """Run a chain of commands. Finished steps are skipped, interrupted ones resumed, changed ones made again."""
    from minitron_cli.chain.run import plan_run, run
    from minitron_cli.chain.summary import summary_table, write_summary
    from minitron_cli.cli.recipes import check_values, find_recipe, options_by_verb
    from minitron_cli.spec.recipe import command_line
    from minitron_cli.spec.recipe_file import apply_settings, load_recipe

    commands = context.find_root().command.commands  # type: ignore[attr-defined]
    options = options_by_verb(commands)
    chain = apply_settings(load_recipe(find_recipe(recipe), options), settings or [], options)
    check_values(chain, commands)
    directory = output or Path("runs") / chain.name
    if print_commands:
        if begin or until:
            raise MinitronError(
                "--print-commands prints the whole chain; --from and --until choose what is run", "leave them out"
            )
        for step in chain.steps:
            print("minitron " + shlex.join(command_line(chain, step, directory)))
        return
    if dry_run:
        facts = _plan_facts(chain, plan_run(chain, directory, begin, until), directory, tflops, mfu)
        emit(facts, as_json, lambda: show_plan(facts))
        return
    run(chain, directory, _execute, say, begin, until)
    family = write_summary(chain, directory)
    emit(family, as_json, lambda: _show_family(family, directory, summary_table))


def _show_family(family: dict[str, Any], directory: Path, summary_table: Any) -> None:
    table(*summary_table(family))
    print("what each step took (the estimate in brackets where it differs)")
    show_took(family)
    print(f"{directory / FAMILY}: the family, its lineage and its figures")


def _plan_facts(chain: Any, decisions: list[Any], directory: Path, tflops: float, mfu: float) -> dict[str, Any]:
    from minitron_cli.chain.estimate import estimate
    from minitron_cli.chain.state import Record, load
    from minitron_cli.chain.summary import known_configs
    from minitron_cli.spec.recipe import command_line

    records = load(directory)
    costs = {cost.step.name: cost for cost in estimate(chain, known_configs(chain, directory))}
    steps = []
    for decision in decisions:
        cost, record = costs[decision.step.name], records.get(decision.step.name, Record())
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
            "gpu_hours": hours_at(cost.flops, tflops, mfu),
            "memory_bytes": cost.memory_bytes,
            "disk_bytes": cost.disk_bytes,
            "working_bytes": cost.working_bytes,
            "seconds": record.seconds,
            "took": record.took,
            "command": line,
        })  # fmt: skip
    assumed = (
        f"GPU hours at {mfu:.0%} of {tflops:g} TFLOP/s (--mfu, --gpu-tflops); memory on a device: one sequence at a "
        "time in bfloat16, unless the step sets them; disk: the weights that stay"
    )
    return {"run": str(directory), "assumed": assumed, "steps": steps}


def _execute(arguments: Sequence[str]) -> Any:
    """Run one step in a process of its own: its memory is freed at its end, and a crash is only the step's.

    SIGTERM is passed on, so that training saves before the chain ends; SIGINT reaches the whole terminal group anyway.
    """
    import signal
    import subprocess
    import sys

    from minitron_cli.chain.actual_cost import Ended

    say("$ minitron " + shlex.join(arguments))
    with subprocess.Popen([sys.executable, "-m", "minitron_cli", *arguments], stdout=sys.stderr) as child:
        previous = signal.signal(signal.SIGTERM, lambda *_: child.terminate())
        try:
            peak = _wait(child)
        except KeyboardInterrupt:
            child.wait()
            raise
        finally:
            signal.signal(signal.SIGTERM, previous)
    return Ended(child.returncode, peak)


def _wait(child: Any) -> int:
    """Wait for a process and set its exit code; the most bytes that it, or a process it waited for, had resident."""
    import os
    import sys

    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
