"""The command table: every verb in plain sight."""

from typing import Annotated

import typer

from minitron_cli import __version__
from minitron_cli.cli import (
    bench,
    data,
    distill,
    eval,
    importance,
    inspect,
    prune,
    recipes,
    reference_loss,
    report,
    run,
    search,
    shear,
    toy,
    train,
    verify,
)
from minitron_cli.cli.help import grouped

app = typer.Typer(
    rich_markup_mode=None,  # rich help costs 0.1 to 0.2 s at start-up
    pretty_exceptions_enable=False,  # a bug keeps its traceback
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"minitron {__version__}")
        raise typer.Exit


@app.callback()
def _root(version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True)] = False) -> None:
    """Make a smaller language model out of a bigger one: measure, trim, distill, check - and again from the result.

    Every option's default can be set in the environment: --hidden reads MINITRON_HIDDEN, MODEL reads MINITRON_MODEL.
    """


for module in (
    *(importance, prune, shear, distill, train, reference_loss, eval, bench),
    *(search, inspect, verify, run, report, toy),
):
    panels, defaults = getattr(module, "PANELS", {}), getattr(module, "defaults", dict)
    app.command(module.NAME, epilog=module.EXAMPLES, cls=grouped(panels, defaults))(module.command)
for group in (data, recipes):
    app.add_typer(group.app, name=group.NAME)
