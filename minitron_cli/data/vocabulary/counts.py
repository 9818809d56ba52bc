"""How often a corpus uses each token, by domain, and what a cut does to its text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minitron_cli.data.encode import Progress, encode_all
from minitron_cli.data.prepare import Job, default_cache, is_made, make_job, require_text, token_files
from minitron_cli.data.source import parse_sources
from minitron_cli.data.tokenizer import TextTokenizer, load_tokenizer, token_byte_lengths, tokenizer_json
from minitron_cli.data.tokens import TokenFile, require_ids_below, require_ids_in
from minitron_cli.data.vocabulary.relation import image_of
from minitron_cli.data.vocabulary.surgery import backend_of, cut_tokenizer
from minitron_cli.data.vocabulary.words import count_piece, read_uses, words_of
from minitron_cli.errors import MinitronError

_BLOCK = 1 << 24  # tokens counted in one go


@dataclass(frozen=True, slots=True)
class Respelling:
    """What a cut does to the text of one domain.

    `tokens` were counted, which spell `bytes`; the shares are of tokens that go, of the bytes that those spell, and of
    tokens that the text gets longer by when each token that goes is spelled by those that stay.
    """

    tokens: int
    bytes: int
    tokens_changed: float
    bytes_changed: float
    lengthening: float


def count_tokens(
    data: Sequence[str],
    model: Path,
    rows: int,
    progress: Progress = lambda done, total, tokens: None,
    workers: int = 1,
) -> dict[str, np.ndarray]:
    """Uses of every id by domain, in order of appearance: {domain: (rows,) int64}.

    Text that comes apart into words is counted by them, in `workers` processes; other text is tokenised as a whole,
    into the cache that training reads from. Both are kept: a killed run goes on where it was.
    """
    tokenizer, cache = load_tokenizer(model), default_cache()
    separator, words = _separator(tokenizer), words_of(tokenizer)
    counts: dict[str, np.ndarray] = {}
    for source in parse_sources(tuple(data)):
        found = None
        if words is not None and source.tokens is None:
            job = make_job((source,), tokenizer, separator, None, cache)
            if not is_made(job, cache / "tokens" / job.key()):
                found = _by_words(job, cache / "counts" / job.key(), rows, workers, progress)
        if found is None:
            files = token_files((source,), model, separator, progress=progress)
            require_ids_below(files, rows, model)
            found = _by_domain(files[0], rows)
        for domain, uses in found.items():
            counts[domain] = counts.get(domain, 0) + uses
    return counts


def spelling(
    data: Sequence[str],
    model: Path,
    whole: Path | None = None,
    progress: Progress = lambda done, total, tokens: None,
    workers: int = 1,
) -> dict[str, Respelling]:
    """How the tokenizer of `model` spells text, by domain; with `whole`, what of it its tokenizer spelled otherwise.

    Raises MinitronError where `model` is not a cut of `whole`.
    """
    source = whole or model
    rows = load_tokenizer(source).vocab_size
    kept = np.arange(rows)
    if whole is not None:
        image, differing = image_of(model, whole)
        if differing:
            raise MinitronError(
                f"the vocabulary of {model} is not a cut of that of {whole}: {', '.join(differing)}",
                "name the model that it was cut from with --source",
            )
        kept = np.unique(image[image >= 0])
    counts = count_tokens(data, source, rows, progress, workers)
    return respelling(counts, tokenizer_json(source), source, kept, rows)


def _by_words(job: Job, directory: Path, rows: int, workers: int, progress: Progress) -> dict[str, np.ndarray]:
    directory.mkdir(parents=True, exist_ok=True)
    parts = encode_all(job.tasks, job.how, job.tokenizer, directory, workers, progress, count_piece)
    require_text(job, parts)
    counts: dict[str, np.ndarray] = {}
    for index, part in enumerate(parts):
        for domain, uses in zip(part.domains, read_uses(directory, index, part)):
            counts[domain] = counts.get(domain, 0) + uses
    used = np.flatnonzero(np.sum(list(counts.values()), axis=0))
    require_ids_in(used, rows, job.tokenizer.path, job.sources[0]["name"])
    return {domain: np.pad(uses, (0, max(0, rows - len(uses))))[:rows] for domain, uses in counts.items()}


def _separator(tokenizer: TextTokenizer) -> str:
    return "auto" if tokenizer.adds_bos or tokenizer.eos_id is not None else "none"


def _by_domain(file: TokenFile, rows: int) -> dict[str, np.ndarray]:
    domains = file.header.domains
    counts = np.zeros((len(domains), rows), np.int64)
    for start in range(0, file.header.num_tokens, _BLOCK):
        tokens = file.tokens[start : start + _BLOCK].astype(np.int64)
        if len(domains) > 1:
            places = np.arange(start, start + len(tokens))
            documents = np.searchsorted(file.documents["end"], places, side="right")
            tokens += file.documents["domain"][documents].astype(np.int64) * rows
        counts += np.bincount(tokens, minlength=counts.size).reshape(counts.shape)
    return dict(zip(domains, counts))


def respelling(
    counts: Mapping[str, np.ndarray], raw: Mapping[str, Any], model: Path, kept: np.ndarray, rows: int
) -> dict[str, Respelling]:
    """What keeping the ids of `kept` (ascending) does to counted text, by domain.

    The lengthening takes every token that goes by itself; neighbours that then merge make it a little less.
    """
    used = np.sum(list(counts.values()), axis=0) > 0
    gone = np.setdiff1d(np.flatnonzero(used), kept)
    lengths = np.ones(rows, np.int64)
    if len(gone):
        model_of = backend_of(cut_tokenizer(raw, kept, rows)).model
        spelled = {index: token for token, index in backend_of(raw).get_vocab(with_added_tokens=True).items()}
        lengths[gone] = [len(model_of.tokenize(spelled[int(index)])) for index in gone]
    spells = np.zeros(rows, np.int64)
    known = token_byte_lengths(load_tokenizer(model))[:rows]
    spells[: len(known)] = known
    stays = np.zeros(rows, bool)
    stays[kept] = True
    return {domain: _respelled(found, stays, lengths, spells) for domain, found in counts.items()}


def _respelled(counts: np.ndarray, stays: np.ndarray, lengths: np.ndarray, spells: np.ndarray) -> Respelling:
    tokens, size, gone = int(counts.sum()), int((counts * spells).sum()), counts * ~stays
    return Respelling(
        tokens,
        size,
        float(gone.sum() / tokens),
        float((gone * spells).sum() / max(1, size)),
        float((gone * (lengths - 1)).sum() / tokens),
    )
