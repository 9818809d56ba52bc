"""`minitron reference-loss`: the losses that a dynamic mix aims at."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from minitron_cli.cli.common import command_line, emit, examples, option, parse_count, say, table
from minitron_cli.errors import MinitronError

if TYPE_CHECKING:
    from minitron_cli.training.reference_file import References

NAME = "reference-loss"
EXAMPLES = examples(
    "minitron reference-loss --source Llama-2-7b --eval-data c4.jsonl --eval-data wiki.jsonl --seq-len 4096 -o 7b.json",
    "minitron reference-loss --fit 6.74B:7b.json --fit 13.0B:13b.json --fit 69.0B:70b.json --params 1.3B -o 1.3b.json",
)
PANELS = {
    "Text": ("separator", "text_field", "cross_doc"),
    "Machine": ("micro_batch", "dtype", "device", "trust_remote_code"),
}


def command(
    source: Annotated[str | None, option("--source", help="the model whose losses are the reference")] = None,
    fit: Annotated[
        list[str] | None, option("--fit", help="[SIZE:]FILE: losses of one size of a family; three or more")
    ] = None,
    params: Annotated[
        int | None, option("--params", help="--fit: parameters of the student", parser=parse_count)
    ] = None,
    bounded: Annotated[
        bool, option("--bounded/--unbounded", help="--fit: hold the loss of an endless model at 0 or more")
    ] = True,
    eval_data: Annotated[
        list[str] | None, option("--eval-data", help="--source: held-out text, one of each domain; repeatable")
    ] = None,
    seq_len: Annotated[int | None, option("--seq-len", help="--source: tokens a window, as the run will have")] = None,
    eval_windows: Annotated[int, option("--eval-windows", help="--source: windows of each --eval-data")] = 128,
    micro_batch: Annotated[int | None, option("--micro-batch", help="--source: windows a forward pass")] = None,
    separator: Annotated[str, option("--separator", help="between documents: auto, bos, eos, bos+eos, none")] = "auto",
    text_field: Annotated[str | None, option("--text-field", help="the column that holds the text")] = None,
    cross_doc: Annotated[bool, option("--cross-doc/--no-cross-doc", help="attend over the documents of a row")] = True,
    dtype: Annotated[str, option("--dtype", help="float32 or bfloat16 [default: by device]")] = "auto",
    device: Annotated[str, option("--device", help="cpu, cuda or cuda:N [default: a GPU if there is one]")] = "auto",
    trust_remote_code: Annotated[bool, option("--trust-remote-code", help="let the model's own code run")] = False,
    output: Annotated[Path | None, option("-o", "--output", help="the file to write")] = None,
    dry_run: Annotated[bool, option("--dry-run", help="make every check, and only say what would be done")] = False,
    as_json: Annotated[bool, option("--json", help="one JSON object on stdout")] = False,
) -> None:
    """Measure, or predict from a family's sizes, the loss on each domain that `--mix dynamic` aims at."""
    from minitron_cli.training import reference

    if (source is None) == (not fit) or output is None:
        raise MinitronError(
            "`minitron reference-loss` needs --source MODEL or --fit [SIZE:]FILE, and -o FILE",
            "the losses of a model, or those that a family's sizes predict for --params N",
        )
    if source is not None:
        if not eval_data or params is not None:
            raise MinitronError("--source needs --eval-data, and takes no --params", "give one held-out set per domain")
        found: Any = reference.measure_source(
            source, eval_data, output, say, dry_run, seq_len=seq_len, eval_windows=eval_windows,
            micro_batch=micro_batch, separator=separator, text_field=text_field, cross_doc=cross_doc, dtype=dtype,
            device=device, trust_remote_code=trust_remote_code,
        )  # fmt: skip
        if dry_run:
            emit(found, as_json, lambda: print(f"would measure {found['windows']} windows and write {output}"))
            return
    else:
        if eval_data or params is None:
            raise MinitronError("--fit needs --params, and takes no --eval-data", "the files name their held-out text")
        found = reference.predict(
            [_sized(text) for text in fit or ()], params, output, say, bounded=bounded, dry_run=dry_run
        )
    facts = {"output": str(output), "parameters": found.parameters, "losses": _losses(found)}
    emit(facts, as_json, lambda: _show(found, output, dry_run))


def _sized(text: str) -> tuple[int | None, Path]:
    """`6.74B:7b.json` or `7b.json`."""
    from minitron_cli.spec.counts import parse_count as parse

    size, colon, file = text.partition(":")
    if not colon or Path(text).exists():
        return None, Path(text)
    return parse(size), Path(file)


def _losses(found: "References") -> dict[str, float]:
    return {domain.name: domain.loss for domain in found.domains}


def _show(found: "References", output: Path, dry_run: bool) -> None:
    table(["domain", "nats per token"], [[name, f"{loss:.4f}"] for name, loss in _losses(found).items()])
    if dry_run:
        print(f"would write {output}")
        return
    print(f"{output}: losses of {'a' if found.model else 'a predicted'} model of {found.parameters:,} parameters")
    print("next: " + command_line("train", "STUDENT", "--mix", "dynamic", "--reference-losses", output) + " ...")
