"""What a run reads: models and token files, found, checked against one another, and identified by their content."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from minitron_cli.checkpoint.provenance import combined_digest, file_digest, model_digest
from minitron_cli.checkpoint.reader import load_config, resolve_model
from minitron_cli.data.order import Order, mixture_weights
from minitron_cli.data.prepare import token_files
from minitron_cli.data.source import parse_sources
from minitron_cli.data.tokenizer import tokenizer_differences, tokenizer_hash
from minitron_cli.data.tokens import TokenFile
from minitron_cli.errors import MinitronError
from minitron_cli.training.options import Options


@dataclass(frozen=True, slots=True)
class Models:
    """The directories of a run's models; `tokenizer` is the student's, or its teacher's where it has none."""

    student: Path
    teachers: tuple[Path, ...]
    shares: tuple[float, ...]
    tokenizer: Path


def find_models(options: Options) -> Models:
    """Resolve the student and the teachers, and refuse teachers that read text differently."""
    student = resolve_model(options.student)
    load_config(student)
    split = [split_share(spec) for spec in options.teacher]
    teachers = tuple(resolve_model(where) for where, _ in split)
    tokenizer = next((m for m in (student, *teachers) if has_tokenizer(m)), None)
    if tokenizer is None:
        raise MinitronError(
            f"{student} has no tokenizer", "copy tokenizer.json and tokenizer_config.json of its model there"
        )
    for teacher in teachers:
        check_tokenizers(tokenizer, teacher)
    return Models(student, teachers, tuple(share for _, share in split), tokenizer)


def split_share(spec: str) -> tuple[str, float]:
    """`MODEL:0.3` -> (MODEL, 0.3); without a number the share is 1."""
    where, colon, last = spec.rpartition(":")
    if not colon or Path(spec).exists():
        return spec, 1.0
    try:
        share = float(last)
    except ValueError:
        return spec, 1.0
    if not 0 < share < float("inf"):
        raise MinitronError(f"--teacher {spec}: the share must be above 0", "write it as --teacher MODEL:0.7")
    return where, share


def has_tokenizer(model: Path) -> bool:
    return any((model / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model"))


def check_tokenizers(one: Path, other: Path) -> None:
    """Equal vocabulary sizes prove nothing: compare what decides the ids."""
    if not has_tokenizer(other):
        return
    if tokenizer_hash(one) != tokenizer_hash(other):
        parts = ", ".join(tokenizer_differences(one, other))
        raise MinitronError(
            f"{one} and {other} have different tokenizers (they differ in {parts})",
            "logits can only be compared id by id: take a teacher of the student's own family",
        )


def open_order(options: Options, models: Models) -> Order:
    """The rows to train on: sources tokenised where they are not yet, in the order that seed and weights give."""
    assert options.seq_len is not None
    files, named = open_files(options.data, models, options)
    weights = mixture_weights(named, files, options.seq_len)
    phases = tuple(_phase(spec) for spec in options.phases)
    return Order(files, weights, options.seq_len, options.batch, options.seed, phases)


def open_files(
    specs: Sequence[str], models: Models, options: Options
) -> tuple[tuple[TokenFile, ...], tuple[float | None, ...]]:
    """Token files of data sources, and the weights that were typed with them."""
    sources = parse_sources(tuple(specs))
    files = token_files(sources, models.tokenizer, separator=options.separator, text_field=options.text_field)
    return files, tuple(source.weight for source in sources)


def _phase(spec: str) -> tuple[int, tuple[float, ...]]:
    """`1000:0.7,0.3` -> until step 1000 the sources are mixed 0.7 to 0.3."""
    until, colon, weights = spec.partition(":")
    try:
        phase = int(until.replace("_", "")), tuple(float(w) for w in weights.split(","))
    except ValueError:
        colon = ""
    if not colon:
        raise MinitronError(
            f"--phase {spec!r} can not be read", "write it as STEP:WEIGHT,WEIGHT,..., one weight per --data"
        )
    return phase


def digests(models: Models, order: Order, from_scratch: bool) -> dict[str, str]:
    """What identifies the inputs wherever they lie: compared on resume, recorded in the manifest."""
    found = {"student": config_digest(models.student) if from_scratch else model_digest(models.student)}
    for i, (teacher, share) in enumerate(zip(models.teachers, models.shares)):
        found[f"teacher {i + 1}" if len(models.teachers) > 1 else "teacher"] = f"{model_digest(teacher)} x {share:g}"
    for i, (file, weight) in enumerate(zip(order.files, order.weights)):
        found[f"data {i + 1}" if len(order.files) > 1 else "data"] = f"{file.header.tokens_sha256} x {weight:g}"
    return found


def config_digest(model: Path) -> str:
    """Identity of an architecture: a run from scratch does not read the weights."""
    return combined_digest({"config.json": file_digest(model / "config.json")})
