"""`minitron data tokenize`: raw text to a token file."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from minitron_cli.cli.common import bytes_text, command_line, count_text, emit, examples, say, table
from minitron_cli.cli.help import grouped
from minitron_cli.cli.parameters import AS_JSON, DRY_RUN, OVERWRITE, command_of, flag, positional
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


def _act(given: Mapping[str, Any]) -> None:
    from minitron_cli.data.pipes import spooled
    from minitron_cli.data.prepare import default_cache

    needed = {"SOURCE...": "sources", "--tokenizer MODEL": "tokenizer", "-o DIRECTORY": "output"}
    if missing := [words for words, name in needed.items() if not given[name]]:
        raise MinitronError(
            f"`minitron data tokenize` needs {', '.join(missing)}",
            "minitron data tokenize stories.jsonl --tokenizer MODEL -o tokens/",
        )
    with spooled(given["sources"], default_cache()) as files:
        _tokenize(files, given)


def _tokenize(sources: list[str], given: Mapping[str, Any]) -> None:
    from minitron_cli.checkpoint.atomic import check_apart
    from minitron_cli.checkpoint.disk import need_space
    from minitron_cli.cli.progress import byte_progress
    from minitron_cli.data.prepare import check_token_output, default_cache, is_made, make_job, run_job
    from minitron_cli.data.preview import preview
    from minitron_cli.data.source import local_paths, parse_sources
    from minitron_cli.data.tokenizer import load_tokenizer

    tokenizer, output, overwrite = given["tokenizer"], given["output"], given["overwrite"]
    parsed = parse_sources(sources)
    if any(source.weight is not None for source in parsed):
        raise MinitronError("a token file has no weights", "give the weights to --data, when it is used")
    job = make_job(parsed, load_tokenizer(tokenizer), given["separator"], given["text_field"], default_cache())
    check_apart(output, [tokenizer, *local_paths(sources)])
    done = is_made(job, output)
    if not done:
        check_token_output(job, output, overwrite)
    if given["dry_run"]:
        facts = preview(job) | {"output": str(output), "done": done}
        emit(facts, given["as_json"], lambda: _show_plan(facts))
        if not done:
            need_space(output, facts["estimated_output_bytes"])
        return
    if not done:
        say(f"tokenising {len(job.tasks)} piece(s) of {', '.join(source.spec for source in parsed)} -> {output}")
    with byte_progress("tokenising") as progress:
        made = run_job(job, output, given["workers"], progress, overwrite, lambda directory, _: _sign(directory, job))
    facts = _facts(made.header) | {"output": str(output)}
    emit(facts, given["as_json"], lambda: _show_done(facts, tokenizer))


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


command = command_of(
    (
        positional(
            "sources", list[str], "SOURCE", "files, directories, globs, datasets names (as --data), or - for a pipe"
        ),
        flag("tokenizer", Path, "a model directory, for its tokenizer"),
        flag("output", Path, "the token directory to make", "-o", "--output"),
        flag("text_field", str, "the column that holds the text"),
        flag("separator", str, "around each document: auto, bos, eos, bos+eos or none", default="auto"),
        flag("workers", int, "worker processes; with 1, the tokenizer itself uses all cores", default=1),
        OVERWRITE,
        DRY_RUN,
        AS_JSON,
    ),
    """Tokenise text once, into a token file for training, calibration and validation.

    The same command resumes after an interruption, and does nothing once the file is complete.
    """,
    _act,
)
app.command("tokenize", epilog=EXAMPLES, cls=grouped({}))(command)
