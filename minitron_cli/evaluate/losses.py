"""Perplexity of one model on `--data`: sources in, figures by domain out, cached as other results are."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minitron_cli.checkpoint.provenance import model_digest
from minitron_cli.data.prepare import token_files
from minitron_cli.data.tokenizer import load_tokenizer, token_byte_lengths, tokenizer_hash
from minitron_cli.data.tokens import TokenFile, require_ids_below
from minitron_cli.errors import MinitronError
from minitron_cli.evaluate.cache import cached
from minitron_cli.evaluate.model import LoadedModel, load_model, max_context
from minitron_cli.evaluate.options import LossOptions
from minitron_cli.evaluate.perplexity import Loss, add, join, perplexity
from minitron_cli.hf.context import sequence_length
from minitron_cli.hf.parts import vocabulary_of
from minitron_cli.pace import Pace

ALL = "all"
LOSS_FIGURES = ("tokens", "nats_per_token", "perplexity", "bits_per_byte")
REFERENCE_FIGURES = ("kl", "top1_agreement")
USUAL_LENGTH = 2048  # tokens of a window, or the context of the model where that is shorter


def domains(options: LossOptions, tokenizer: Path) -> tuple[str, ...]:
    """The domains that losses are reported of, and "all"."""
    files = token_files(options.sources, tokenizer, options.separator, options.text_field)
    return (*dict.fromkeys(domain for file in files for domain in file.header.domains), ALL)


def held_out(
    options: LossOptions, model: Path, name: str, context: int | None, vocab: int
) -> tuple[int, tuple[TokenFile, ...]]:
    """Tokens of a window and the text in a model's tokens, refused where the model cannot read them."""
    seq_len = sequence_length(options.seq_len, USUAL_LENGTH, {name: context})
    files = token_files(options.sources, model, options.separator, options.text_field)
    require_ids_below(files, vocab, model)
    return seq_len, files


def measure_losses(
    loaded: LoadedModel,
    digest: str,
    reference: Path,
    options: LossOptions,
    cache: Path | None,
    say: Callable[[str], None],
) -> dict[str, dict[str, Any]]:
    """`domain -> figures`, and the token-weighted whole as `all`; KL and agreement where a reference is asked for."""
    seq_len, files = held_out(options, loaded.path, loaded.name, max_context(loaded), vocabulary_of(loaded.model))
    other = _reference(loaded, reference) if options.against_reference else None
    identity = {
        "model": digest,
        "reference": model_digest(other.path) if other else None,
        "tokens": [file.header.tokens_sha256 for file in files],
        "domains": [file.header.domains for file in files],
        "documents": [hashlib.sha256(file.documents.tobytes()).hexdigest() for file in files],  # ends, bytes, domains
        "seq_len": seq_len,
        "windows": options.windows,
        "dtype": loaded.dtype,
        "device": loaded.device.type,
    }
    figures, known = cached(cache, identity, lambda: _measure(loaded, other, files, seq_len, options.windows, say))
    whole = figures[ALL]
    say(
        f"{loaded.name}: {whole['nats_per_token']:.4f} nats per token, {whole['bits_per_byte']:.4f} bits per byte"
        f" on {whole['tokens']:,} tokens{' (kept from before)' if known else ''}"
    )
    return figures


def _measure(
    loaded: LoadedModel,
    other: LoadedModel | None,
    files: Sequence[TokenFile],
    seq_len: int,
    windows: int | None,
    say: Callable[[str], None],
) -> dict[str, dict[str, Any]]:
    byte_lengths = token_byte_lengths(load_tokenizer(loaded.path))
    found = [
        perplexity(
            loaded.model,
            file,
            seq_len=seq_len,
            max_windows=windows,
            reference=other.model if other else None,
            byte_lengths=byte_lengths,
            progress=_progress(loaded.name, say),
        )
        for file in files
    ]
    return {domain: loss.to_json() for domain, loss in _by_domain(found).items()}


def _by_domain(files: Sequence[dict[str, Loss]]) -> dict[str, Loss]:
    """Every domain over all files, and the whole as `all`; the blocks of a file are the same windows in each."""
    absent = [Loss(0, 0.0, 0.0, np.zeros_like(next(iter(found.values())).blocks), 0.0, 0) for found in files]
    domains = dict.fromkeys(domain for found in files for domain, loss in found.items() if loss.tokens)
    sums = {d: join([found.get(d, none) for found, none in zip(files, absent)]) for d in domains}
    return {**sums, ALL: add(list(sums.values()))}


def _progress(name: str, say: Callable[[str], None]) -> Callable[[int, int], None]:
    """A line every few seconds: windows done, and the time that the rest will take."""
    pace = Pace()

    def tell(done: int, total: int) -> None:
        if done < total and pace.due():
            say(f"{name}: window {done:,} of {total:,}, {pace.left(done, total)}")

    return tell


def _reference(loaded: LoadedModel, path: Path) -> LoadedModel:
    """The model to be close to; KL needs one tokenizer."""
    if tokenizer_hash(loaded.path) != tokenizer_hash(path):
        raise MinitronError(
            f"{loaded.name} and the reference {path} have different tokenizers, so KL between them has no meaning",
            "leave --against-reference out; bits per byte compares them",
        )
    return load_model(path, device=str(loaded.device), dtype=loaded.dtype)
