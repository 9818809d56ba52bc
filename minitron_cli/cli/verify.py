"""`minitron verify`: an artefact against its manifest, and against the source it came from."""

from pathlib import Path
from typing import Annotated, Any

import typer

from minitron_cli.cli.common import argument, emit, examples, option, say
from minitron_cli.errors import MinitronError

NAME = "verify"
EXAMPLES = examples("minitron verify runs/small", "minitron verify runs/small --source meta-llama/Llama-3.1-8B --json")


def command(
    directory: Annotated[Path | None, argument("DIR", help="what a minitron command made")] = None,
    source: Annotated[str | None, option("--source", help="derive the weights again from this model")] = None,
    moments: Annotated[
        Path | None, option("--moments", help="second moments of a compensated model [default: where they were]")
    ] = None,
    load: Annotated[bool, option("--load/--no-load", help="load the model with transformers")] = True,
    as_json: Annotated[bool, option("--json", help="one JSON object on stdout")] = False,
) -> None:
    """Re-check an artefact: hashes, tensors, config, kept indices, and that transformers loads it."""
    from minitron_cli.prune.verify import verify

    if directory is None:
        raise MinitronError("`minitron verify` needs a directory", "type `minitron verify DIR`")
    result = verify(directory, source, load, moments)
    emit(result, as_json, lambda: _show(result))
    if result["problems"]:
        say(f"error: {directory} does not verify: {'; '.join(result['problems'])}")
        say("hint: make it again, or find out who changed it")
        raise typer.Exit(1)


def _show(result: dict[str, Any]) -> None:
    for step in result["lineage"]:
        print(f"from     {step['model']}" + (f" (made by {step['verb']})" if step["verb"] else ""))
    for check in result["checks"]:
        print(f"checked  {check}")
    for name in result["unlisted"]:
        print(f"unlisted {name}")
    if not result["problems"]:
        print(f"{result['directory']} is what `minitron {result['verb']}` made")
