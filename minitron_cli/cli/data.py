"""`minitron data tokenize`: raw text to a token file."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from minitron_cli.cli.common import argument, bytes_text, command_line, count_text, emit, examples, option, say, table
from minitron_cli.errors import MinitronError

if TYPE_CHECKING:
    from minitron_cli.data.prepare import Job
    from minitron_cli.data.tokens import Header

NAME = "data"
EXAMPLES = examples(
    "minitron data tokenize stories.jsonl --tokenizer Llama-3.1-8B -o tokens/",
    "minitron data tokenize 'shards/*.parquet' --tokenizer Llama-3.1-8B --workers 16 -o tokens/ --dry-run",
)
app = typer.Typer(rich_markup_mode=None, no_args_is_help=True, help="Prepare data: raw text to token files.")


@app.callback()
def _group() -> None:
    """Prepare data: raw text to token files."""


@app.command("tokenize", epilog=EXAMPLES)
def tokenize(
    sources: Annotated[
        list[str] | None,
        argument("SOURCE...", help="files, directories, globs, datasets names (as --data), or - for a pipe"),
    ] = None,
    tokenizer: Annotated[Path | None, option("--tokenizer", help="a model directory, for its tokenizer")] = None,
    output: Annotated[Path | None, option("-o", "--output", help="the token directory to make")] = None,
    text_field: Annotated[str | None, option("--text-field", help="the column that holds the text")] = None,
    separator: Annotated[
        str, option("--separator", help="around each document: auto, bos, eos, bos+eos or none")
    ] = "auto",
    workers: Annotated[int, option("--workers", help="processes; 1 uses every core inside the tokenizer")] = 1,
    overwrite: Annotated[bool, option("--overwrite", help="replace an output that minitron made")] = False,
    dry_run: Annotated[bool, option("--dry-run", help="only say what would be done")] = False,
    as_json: Annotated[bool, option("--json", help="one JSON object on stdout")] = False,
) -> None:
    """Tokenise text once, into a token file for training, calibration and validation.

    Typed again it goes on where it was interrupted, and finds a finished file done.
    """
    from minitron_cli.data.pipes import spooled
    from minitron_cli.data.prepare import default_cache

    where, out = _required(sources, tokenizer, output)
    with spooled(sources or [], default_cache()) as files:
        _tokenize(files, where, out, text_field, separator, workers, overwrite, dry_run, as_json)


def _tokenize(
    sources: list[str], where: Path, out: Path, text_field: str | None, separator: str, workers: int, overwrite: bool,
    dry_run: bool, as_json: bool,
) -> None:  # fmt: skip
    from minitron_cli.checkpoint.atomic import check_apart
    from minitron_cli.cli.progress import byte_progress
    from minitron_cli.data.prepare import check_token_output, default_cache, is_made, make_job, run_job
    from minitron_cli.data.preview import preview
    from minitron_cli.data.source import local_paths, parse_sources
    from minitron_cli.data.tokenizer import load_tokenizer

    parsed = parse_sources(sources)
    if any(source.weight is not None for source in parsed):
        raise MinitronError("a token file has no weights", "give the weights to --data, when it is used")
    job = make_job(parsed, load_tokenizer(where), separator, text_field, default_cache())
    check_apart(out, [where, *local_paths(sources)])
    done = is_made(job, out)
    if not done:
        check_token_output(job, out, overwrite)
    if dry_run:
        facts = preview(job) | {"output": str(out), "done": done}
        emit(facts, as_json, lambda: _show_plan(facts))
        return
    if not done:
        say(f"tokenising {len(job.tasks)} piece(s) of {', '.join(source.spec for source in parsed)} -> {out}")
    with byte_progress("tokenising") as progress:
        made = run_job(job, out, workers, progress, overwrite, lambda directory, _: _sign(directory, job))
    facts = _facts(made.header) | {"output": str(out)}
    emit(facts, as_json, lambda: _show_done(facts, where))


def _required(sources: list[str] | None, tokenizer: Path | None, output: Path | None) -> tuple[Path, Path]:
    if not sources or tokenizer is None or output is None:
        given = {"SOURCE...": sources, "--tokenizer MODEL": tokenizer, "-o DIRECTORY": output}
        missing = [name for name, value in given.items() if not value]
        raise MinitronError(
            f"`minitron data tokenize` needs {', '.join(missing)}",
            "minitron data tokenize stories.jsonl --tokenizer MODEL -o tokens/",
        )
    return tokenizer, output


def _sign(directory: Path, job: "Job") -> None:
    from minitron_cli.checkpoint.provenance import write_manifest

    options = {"separator": job.separator, "text_field": job.text_field}
    inputs = {"sources": list(job.sources), "tokenizer_hash": job.tokenizer.hash}
    write_manifest(directory, verb="data tokenize", options=options, inputs=inputs)


def _facts(header: "Header") -> dict[str, Any]:
    return {
        "tokens": header.num_tokens,
        "documents": header.num_documents,
        "empty_documents": header.num_empty,
        "text_bytes": header.num_bytes,
        "bytes_per_token": header.num_bytes / header.num_tokens,
        "separator": header.separator,
        "text_field": header.text_field,
        "domains": list(header.domains),
        "tokenizer_hash": header.tokenizer_hash,
    }


def _show_plan(facts: dict[str, Any]) -> None:
    table(["source", "file", "bytes"], [[row["name"], row["file"], bytes_text(row["bytes"])] for row in facts["files"]])
    print(
        f"about {count_text(facts['estimated_tokens'])} tokens ({bytes_text(facts['estimated_output_bytes'])}), "
        f"text field {facts['text_field'] or 'none'}, separator {facts['separator']}, {facts['pieces']} piece(s)"
    )
    print(f"{facts['output']} is made already" if facts["done"] else f"would write {facts['output']}")


def _show_done(facts: dict[str, Any], tokenizer: Path) -> None:
    if facts["empty_documents"]:
        say(f"warning: {facts['empty_documents']:,} documents are empty and were left out")
    print(
        f"{facts['output']}: {facts['tokens']:,} tokens in {facts['documents']:,} documents, "
        f"{facts['bytes_per_token']:.2f} bytes a token, separator {facts['separator']}"
    )
    print("next: " + command_line("importance", tokenizer, "--data", facts["output"], "-o", "scores.safetensors"))
