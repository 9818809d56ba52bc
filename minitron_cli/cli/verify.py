"""`minitron verify`: an artefact against the digests that it carries, and a pruned model against its source."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from minitron_cli.cli.common import argument, emit, examples, option, say
from minitron_cli.errors import MinitronError
from minitron_cli.spec.recipe import STATE

if TYPE_CHECKING:
    from minitron_cli.checkpoint.verify import Findings

NAME = "verify"
EXAMPLES = examples(
    "minitron verify runs/small --run",
    "minitron verify runs/small --source meta-llama/Llama-3.1-8B --json",
    "minitron verify Llama-3.1-8B.scores.safetensors",
)


def command(
    path: Annotated[Path | None, argument("PATH", help="a model, scores, tokens, results or run directory")] = None,
    source: Annotated[str | None, option("--source", help="derive the weights again from this model")] = None,
    moments: Annotated[
        Path | None, option("--moments", help="input Gram matrices of a compensated model [default: where they were]")
    ] = None,
    load: Annotated[bool, option("--load/--no-load", help="load the model with transformers")] = True,
    forward: Annotated[bool, option("--run", help="run the loaded model on a few tokens")] = False,
    as_json: Annotated[bool, option("--json", help="one JSON object on stdout")] = False,
) -> None:
    """Check what a minitron command made. Digests of all files, and of models also tensors, config and loading."""
    if path is None:
        raise MinitronError("`minitron verify` needs a path", "type `minitron verify DIR`")
    found = _other_artefact(path)
    if found is None:
        from minitron_cli.prune.verify import verify

        found = verify(path, source, load, moments, forward)
    elif source or moments or forward:
        raise MinitronError(f"{path} is not a model", "leave out --source, --moments and --run")
    emit(asdict(found), as_json, lambda: _show(found))
    if found.problems:
        count = "1 problem" if len(found.problems) == 1 else f"{len(found.problems)} problems"
        say(f"error: {path} does not verify ({count}): {'; '.join(found.problems)}")
        say("hint: make it again, or find out who changed it")
        raise typer.Exit(1)


def _other_artefact(path: Path) -> "Findings | None":
    """What checking `path` gives where it is not a directory with a manifest."""
    from minitron_cli.checkpoint import verify
    from minitron_cli.checkpoint.moments_file import INDEX

    if not path.exists():
        raise MinitronError(f"there is nothing at {path}", "give what a minitron command made")
    if path.suffix == ".json" and path.is_file():
        return verify.verify_results(path)
    if path.is_file():
        return verify.verify_scores(path)
    if (path / INDEX).is_file():
        return verify.verify_moments(path)
    if (path / STATE).is_file():
        from minitron_cli.chain.verify import verify_run

        return verify_run(path)
    return None


def _show(found: "Findings") -> None:
    for step in found.lineage:
        print(f"from      {step['model']}" + (f" (made by {step['verb']})" if step["verb"] else ""))
    for title, lines in (("checked", found.checks), ("note", found.notes), ("unlisted", found.unlisted)):
        for line in lines:
            print(f"{title:<9} {line}")
    for problem in found.problems:
        print(f"PROBLEM   {problem}")
    if not found.problems:
        print(f"{found.path} is what `{found.made_by}` made")
