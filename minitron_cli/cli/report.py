"""`minitron report`: a run as one HTML page."""

from pathlib import Path
from typing import Annotated, Any

from minitron_cli.cli.common import argument, count_text, emit, examples, option, say, table
from minitron_cli.errors import MinitronError

NAME = "report"
EXAMPLES = examples("minitron report runs/tiny", "minitron report 4b --results figures.json -o 4b.html")


def command(
    run: Annotated[Path | None, argument("RUN", help="a run directory, or one output of distill or train")] = None,
    output: Annotated[Path | None, option("-o", "--output", help="HTML file [default: in RUN, or beside it]")] = None,
    results: Annotated[
        list[Path] | None, option("--results", help="also show what `eval -o` or `bench -o` wrote; repeatable")
    ] = None,
    gpu_price: Annotated[float | None, option("--gpu-price", help="price of one GPU hour: shows costs")] = None,
    dry_run: Annotated[bool, option("--dry-run", help="only say what would be shown, write nothing")] = False,
    as_json: Annotated[bool, option("--json", help="one JSON object on stdout")] = False,
) -> None:
    """Draw a run as one self-contained HTML page. The family, its lineage, importance, training and evaluation.

    An unfinished run is shown as far as it has come.
    """
    from minitron_cli.report.write import report

    if run is None:
        raise MinitronError(
            "`minitron report` needs a run", "type `minitron report runs/NAME`, the directory that `minitron run` wrote"
        )
    facts = report(run, output, dry_run, gpu_price, results or ())
    for problem in facts["problems"]:
        say(f"warning: {problem}")
    emit(facts, as_json, lambda: _show(facts, dry_run))


def _show(facts: dict[str, Any], dry_run: bool) -> None:
    rows = [
        [
            model["name"],
            "done" if model["state"] == "done" else "in progress",
            count_text(model["parameters"]) if model["parameters"] else "",
            "" if model["loss"] is None else f"{model['loss']:.3f}",
            "" if model["accuracy"] is None else f"{model['accuracy']:.1%}",
            count_text(model["tokens"]) if model["tokens"] else "",
        ]
        for model in facts["models"]
    ]
    table(["model", "state", "parameters", "held-out loss", "task accuracy", "tokens spent"], rows)
    if dry_run:
        print(f"would write {facts['output']}")
    else:
        print(f"{facts['output']}: one page that needs nothing else; next: open it in a browser")
