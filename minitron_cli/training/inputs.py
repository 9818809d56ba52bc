"""What a run reads: models and token files, found, checked against one another, and identified by their content."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from minitron_cli.checkpoint.provenance import combined_digest, file_digest, model_digest, read_manifest
from minitron_cli.checkpoint.quantised import method_of
from minitron_cli.checkpoint.reader import load_config, open_checkpoint, resolve_model, weight_files, wrapper_around
from minitron_cli.data.order import Order, mixture_weights
from minitron_cli.data.prepare import token_files
from minitron_cli.data.source import Source, held_out_sources, local_paths, parse_sources
from minitron_cli.data.stream import StreamOrder
from minitron_cli.data.tokenizer import has_tokenizer, tokenizer_differences, tokenizer_hash
from minitron_cli.data.tokens import TokenFile
from minitron_cli.data.vocabulary.reader import Reader
from minitron_cli.data.vocabulary.relation import image_of
from minitron_cli.errors import MinitronError
from minitron_cli.families import family_of
from minitron_cli.spec.shape import shape_of
from minitron_cli.training.cached_logits.sampled import KINDS as DRAWN_KINDS
from minitron_cli.training.cached_logits.served import Served, connect
from minitron_cli.training.cached_logits.store import HEADER as RECORDING_HEADER
from minitron_cli.training.cached_logits.store import Recording, is_recording, open_recording
from minitron_cli.training.defaults import is_address, split_share
from minitron_cli.training.options import Options
from minitron_cli.training.stretches import parse_phases


@dataclass(frozen=True, slots=True)
class Models:
    """The directories of a run's models; `tokenizer` is the student's, or its teacher's where it has none.

    A teacher that is recorded or served is not a model: it stands in `recording` or `served`, and `teachers` is empty.
    Learned masks start by `scores`.
    `readers` read the student's rows for each teacher whose vocabulary the student's was cut from, else None.
    """

    student: Path
    teachers: tuple[Path, ...]
    shares: tuple[float, ...]
    tokenizer: Path
    recording: Recording | None = None
    scores: Path | None = None
    served: Served | None = None
    readers: tuple[Reader | None, ...] = ()


def find_models(options: Options) -> Models:
    """Resolve the student and the teachers, and refuse teachers that read text differently."""
    student = resolve_model(options.student)
    check_weights(student, from_scratch=options.from_scratch)
    split = [split_share(spec) for spec in options.teacher]
    if addresses := [where for where, _ in split if is_address(where)]:
        return _with_served(options, student, addresses[0])
    if options.teacher_key_env is not None:
        raise MinitronError("--teacher-key-env: no teacher is served", "give --teacher http://HOST:PORT/v1")
    recorded = [Path(where) for where, _ in split if is_recording(Path(where))]
    if recorded:
        return _with_recording(options, student, recorded[0])
    teachers = tuple(resolve_model(where) for where, _ in split)
    tokenizer = next((m for m in (student, *teachers) if has_tokenizer(m)), None)
    if tokenizer is None:
        raise MinitronError(
            f"{student} has no tokenizer", "copy tokenizer.json and tokenizer_config.json of its model there"
        )
    for teacher in teachers:
        check_weights(teacher, frozen=True)
    readers = tuple(reader_for(tokenizer, teacher) for teacher in teachers)
    scores = Path(options.scores) if options.scores else None
    return Models(student, teachers, tuple(share for _, share in split), tokenizer, scores=scores, readers=readers)


def check_weights(model: Path, *, from_scratch: bool = False, frozen: bool = False) -> None:
    """Refuse a model whose weights are not those that its config describes: transformers would draw the missing ones.

    From scratch only the config counts. Quantised weights are accepted for a `frozen` model only. Where the family's
    table does not cover the config, only the presence of weight files is checked.
    """
    config = load_config(model)
    if from_scratch:
        if wrapper_around(model) is not None:
            raise MinitronError(
                f"{model} is a model of text and images: with a new text model its vision tower would be of no use",
                "train a text model: `minitron prune MODEL --text-only` writes one",
            )
        return
    if family_of(str(config["model_type"])).unmet(config):
        weight_files(model)
    else:
        open_checkpoint(model, "bfloat16" if frozen and method_of(config) else None)


def paths_read(options: Options, models: Models) -> list[Path]:
    """Everything on this machine that a run reads, which its output must not touch."""
    recording = [models.recording.path] if models.recording else []
    named = (options.branch_from, options.scores, options.mix_from, options.reference_losses)
    data = local_paths((*options.data, *options.eval_data))
    return [models.student, *models.teachers, models.tokenizer, *recording, *(Path(n) for n in named if n), *data]


def _check_away(options: Options, student: Path, teacher: str) -> None:
    """Refuse what needs a teacher in memory; `teacher` is a clause: "DIR is a recorded teacher"."""
    if len(options.teacher) > 1:
        raise MinitronError(f"{teacher}, which cannot be mixed with others", "give it alone")
    if options.loss not in ("auto", "logits"):
        raise MinitronError(
            f"--loss {options.loss} needs the teacher's hidden states", "give --teacher MODEL, or --loss logits"
        )
    if not has_tokenizer(student):
        raise MinitronError(
            f"{student} has no tokenizer", "copy tokenizer.json and tokenizer_config.json of its model there"
        )


def _with_served(options: Options, student: Path, address: str) -> Models:
    """A student that learns from a teacher that a server runs."""
    _check_away(options, student, f"{address} is a served teacher")
    if options.temperature != 1.0:
        raise MinitronError(
            f"a server gives log-probabilities at temperature 1, not {options.temperature:g}",
            "leave --temperature out, or record the teacher itself with --record-teacher",
        )
    config = load_config(student)
    vocab = shape_of(family_of(str(config["model_type"])), config)["vocab"]
    served = connect(address, student, vocab, options.top_k, options.teacher_key_env)
    return Models(student, (), (), student, served=served)


def _with_recording(options: Options, student: Path, path: Path) -> Models:
    """A student that learns from a recorded teacher; what a recording cannot do is refused."""
    _check_away(options, student, f"{path} is a recorded teacher")
    recording = open_recording(path)
    if tokenizer_hash(student) != recording.header.tokenizer_hash:
        raise MinitronError(
            f"{path} was recorded with another tokenizer than {student}'s", "record a teacher of its family"
        )
    if options.temperature != recording.header.temperature:
        raise MinitronError(
            f"{path} was recorded at temperature {recording.header.temperature:g}, not {options.temperature:g}",
            f"train with --temperature {recording.header.temperature:g}, or record again",
        )
    if recording.header.draws and options.kind not in DRAWN_KINDS:
        raise MinitronError(
            f"--kind {options.kind} needs the teacher's probabilities: {path} holds draws from it",
            f"give --kind {' or '.join(DRAWN_KINDS)}, or record with --record top-k",
        )
    usual = next(field.default for field in fields(Options) if field.name == "top_k")
    if options.top_k not in (usual, recording.header.top_k):
        raise MinitronError(f"{path} holds {recording.header}, not the top {options.top_k}", "leave --top-k out")
    if options.cross_doc != recording.header.cross_doc:
        given = ["--no-cross-doc", "--cross-doc"]
        raise MinitronError(
            f"{path} was recorded with {given[recording.header.cross_doc]}, this run has {given[options.cross_doc]}",
            f"train with {given[recording.header.cross_doc]}, or record again",
        )
    return Models(student, (), (), student, recording)


def check_recording(recording: Recording, order: Order, steps: int) -> None:
    """Refuse a recording that does not cover the windows a run will read."""
    header = recording.header
    require_one_length(order, str(recording.path))
    here = tuple(f.header.tokens_sha256 for f in order.files)
    if header.tokens_sha256 != here or header.seq_len != order.seq_len:
        raise MinitronError(
            f"{recording.path} was recorded from other data (or other than {order.seq_len} tokens a window)",
            "give the --data, --separator and --seq-len that it was recorded with",
        )
    missing = [len(recording.lacks(i, windows)) for i, windows in enumerate(windows_read(order, steps))]
    if any(missing):
        raise MinitronError(
            f"{recording.path} lacks {sum(missing):,} of the windows that {steps} steps read",
            "record as many --steps, with the same --batch and --seed",
        )


def require_one_length(order: Order, recording: str) -> None:
    """Refuse phases of several lengths beside a recording, whose windows are all of one."""
    if len(order.lengths) > 1:
        raise MinitronError(
            f"{recording} holds windows of one length, and --phase has rows of {', '.join(map(str, order.lengths))}",
            "train from the teacher itself, or from a served one",
        )


def windows_read(order: Order, steps: int) -> tuple[np.ndarray, ...]:
    """The windows of each token file that the first `steps` steps read, ascending."""
    read = [np.zeros(f.num_windows(order.seq_len), bool) for f in order.files]
    for step in range(steps):
        files, windows = order.places(step)
        for file in np.unique(files):
            read[file][windows[files == file]] = True
        if all(r.all() for r in read):
            break
    return tuple(np.flatnonzero(r) for r in read)


def reader_for(student: Path, teacher: Path) -> Reader | None:
    """How a teacher tokenises the student's text, where its vocabulary is larger; None where the tokenizers are equal.

    Raises MinitronError where they differ and the student's is not a cut of the teacher's. What decides the ids is
    compared, since equal sizes prove nothing.
    """
    if not has_tokenizer(teacher) or tokenizer_hash(student) == tokenizer_hash(teacher):
        return None
    image, differences = image_of(student, teacher)
    if differences:
        raise MinitronError(
            f"{student} and {teacher} have different tokenizers (they differ in "
            f"{', '.join(tokenizer_differences(student, teacher))}), and the student's is not a cut of the teacher's "
            f"({', '.join(differences)})",
            "logits can only be compared token by token: take a teacher of the student's own family, or the model "
            "whose vocabulary was cut by `minitron prune --vocab`",
        )
    mine, theirs = (load_config(model).get("vocab_size") for model in (student, teacher))
    if theirs is not None and (largest := int(image[:mine].max())) >= theirs:
        raise MinitronError(
            f"{teacher} has {theirs:,} embeddings, and {student} a token whose id is {largest:,} there",
            "take the model whose vocabulary was cut",
        )
    return Reader(student, teacher, image)


def open_order(options: Options, models: Models) -> Order:
    """The rows to train on: sources tokenised where they are not yet, in the order that seed and weights give."""
    assert options.seq_len is not None
    files, named = open_files(options.data, models, options)
    weights = last_mix(options, named) or mixture_weights(named, files, options.seq_len)
    return Order(files, weights, options.seq_len, options.batch, options.seed, parse_phases(options))


def last_mix(options: Options, named: Sequence[float | None]) -> tuple[float, ...] | None:
    """The weights that the dynamic mix of `--mix-from` ended with, None without; `named` are the sources' own."""
    if options.mix_from is None:
        return None
    if any(weight is not None for weight in named):
        raise MinitronError("--mix-from and weights in --data both say how to begin", "leave one of them out")
    model, count = Path(options.mix_from), len(named)
    mix = ((read_manifest(model) or {}).get("training") or {}).get("mix") or []
    if not mix:
        raise MinitronError(f"{model} was not trained with --mix dynamic", "give a result of such a run, or weights")
    _, weights = mix[-1]
    if len(weights) != count:
        raise MinitronError(
            f"{model} was trained on {len(weights)} sources, here are {count}", "give as many --data, in the same order"
        )
    return tuple(map(float, weights))


def open_files(
    specs: Sequence[str], models: Models, options: Options
) -> tuple[tuple[TokenFile, ...], tuple[float | None, ...]]:
    """Token files of data sources, and the weights that were typed with them."""
    sources = parse_sources(tuple(specs))
    return _token_files(sources, models, options), tuple(source.weight for source in sources)


def open_held_out(specs: Sequence[str], models: Models, options: Options) -> tuple[TokenFile, ...]:
    """Token files of text that losses are measured on."""
    return _token_files(held_out_sources(tuple(specs)), models, options)


def _token_files(sources: tuple[Source, ...], models: Models, options: Options) -> tuple[TokenFile, ...]:
    return token_files(sources, models.tokenizer, separator=options.separator, text_field=options.text_field)


def digests(models: Models, order: Order | StreamOrder, from_scratch: bool) -> dict[str, str]:
    """The identity of the inputs by content, wherever they are: compared on resume, recorded in the manifest."""
    found = {"student": student_digest(models, from_scratch)}
    for i, (teacher, share) in enumerate(zip(models.teachers, models.shares)):
        found[f"teacher {i + 1}" if len(models.teachers) > 1 else "teacher"] = f"{model_digest(teacher)} x {share:g}"
    if models.recording is not None:
        found["teacher"] = f"{file_digest(models.recording.path / RECORDING_HEADER)} recorded"
    if models.served is not None:
        found["teacher"] = f"{models.served.model} served"
    if models.scores is not None:
        found["scores"] = file_digest(models.scores)
    for reader in filter(None, models.readers):
        found["vocabulary"] = reader.digest
    return found | data_digests(order)


def data_digests(order: Order | StreamOrder) -> dict[str, str]:
    """What identifies the data, by names that begin with "data"."""
    if isinstance(order, StreamOrder):
        # What is read is watched by the stream's own index.
        return {"data": hashlib.sha256(json.dumps(order.identity()).encode()).hexdigest() + " streamed"}
    return {
        f"data {i + 1}" if len(order.files) > 1 else "data": f"{file.header.tokens_sha256} x {weight:g}"
        for i, (file, weight) in enumerate(zip(order.files, order.weights))
    }


def student_digest(models: Models, from_scratch: bool) -> str:
    """Identity of what the student starts as."""
    return config_digest(models.student) if from_scratch else model_digest(models.student)


def config_digest(model: Path) -> str:
    """Identity of an architecture: a run from scratch does not read the weights."""
    return combined_digest({"config.json": file_digest(model / "config.json")})
