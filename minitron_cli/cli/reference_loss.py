"""`minitron reference-loss`: the losses that a dynamic mix aims at."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minitron_cli.cli import training_options as o
from minitron_cli.cli.common import command_line, emit, examples, say, table
from minitron_cli.cli.parameters import AS_JSON, DRY_RUN, command_of, counted, flag, joined, names, typed
from minitron_cli.errors import MinitronError

if TYPE_CHECKING:
    from minitron_cli.training.reference_file import References

NAME = "reference-loss"
EXAMPLES = examples(
    "minitron reference-loss --source Llama-2-7b --eval-data c4.jsonl --eval-data wiki.jsonl --seq-len 4096 -o 7b.json",
    "minitron reference-loss --fit 6.74B:7b.json --fit 13.0B:13b.json --fit 69.0B:70b.json --params 1.3B -o 1.3b.json",
)


def _act(given: Mapping[str, Any]) -> None:
    from minitron_cli.training import reference

    source, fit, output, dry_run = given["source"], given["fit"], given["output"], given["dry_run"]
    if (source is None) == (not fit) or output is None:
        raise MinitronError(
            "`minitron reference-loss` needs --source MODEL or --fit [SIZE:]FILE, and -o FILE",
            "the losses of a model, or those that a family's sizes predict for --params N",
        )
    how = typed(given, *(p.name for p in _OWN))
    if source is not None:
        if not given["eval_data"] or given["params"] is not None:
            raise MinitronError("--source needs --eval-data, and takes no --params", "give one held-out set per domain")
        found: Any = reference.measure_source(source, given["eval_data"], output, say, dry_run, **how)
        if dry_run:
            text = f"would measure {found['windows']} windows and write {output}"
            emit(found, given["as_json"], lambda: print(text))
            return
    else:
        if given["eval_data"] or given["params"] is None:
            raise MinitronError("--fit needs --params, and takes no --eval-data", "the files name their held-out text")
        found = reference.predict(
            [_sized(text) for text in fit], given["params"], output, say, bounded=given["bounded"], dry_run=dry_run
        )
    facts = {"output": str(output), "parameters": found.parameters, "losses": _losses(found)}
    emit(facts, given["as_json"], lambda: _show(found, output, dry_run))


_OWN = (
    flag("source", str, "the model whose losses are the reference"),
    flag("fit", list[str], "[SIZE:]FILE: losses of one size of a family; three or more"),
    counted("params", "--fit: parameters of the student"),
    flag("bounded", bool, "--fit: keep the loss of an infinitely large model at 0 or above", "--bounded/--unbounded",
         negatable=True, default=True),
    flag("eval_data", list[str], "--source: held-out text, one --eval-data per domain"),
    flag("output", Path, "the file to write", "-o", "--output"),
    DRY_RUN,
    AS_JSON,
)  # fmt: skip
# How a model's losses are measured: as a run measures its student's.
_WINDOWS = o.only("seq_len", "eval_windows")
_MORE = {
    "Text": o.only("separator", "text_field", "cross_doc"),
    "Machine": o.only("micro_batch", "dtype", "device", "trust_remote_code"),
}
PANELS, defaults = names(_MORE), o.defaults
command = command_of(
    joined((*_OWN, *_WINDOWS), _MORE),
    "Measure or predict the losses that --mix dynamic aims at. There is one for each domain; they are predicted from "
    "the losses of other sizes of a family.",
    _act,
)


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
