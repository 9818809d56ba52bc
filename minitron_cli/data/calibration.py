"""Calibration samples: windows, or documents, drawn with a seed over the whole of every source, none twice."""

from typing import Any

import numpy as np

from minitron_cli.data.mixture import counts, exact_weights, sequence
from minitron_cli.data.permutation import derive, permute
from minitron_cli.data.tokens import TokenFile, require_one_tokenizer
from minitron_cli.errors import MinitronError

# Keeps a calibration of seed s from walking the same permutation as training with seed s.
_CALIBRATION = 0xCA11


def calibration_rows(
    files: tuple[TokenFile, ...],
    weights: tuple[float, ...],
    samples: int,
    seq_len: int,
    seed: int,
    allow_fewer: bool = False,
) -> tuple[np.ndarray, dict[str, Any]]:
    """Packed windows: (samples, seq_len) int64, and what they are (JSON).

    The first m of n samples are the samples of a draw of m. Fewer windows than asked for is an error that says how many
    there are; with `allow_fewer` it is fewer rows.
    """
    sizes = [file.num_windows(seq_len) for file in files]
    domains, picks = _draw(files, weights, sizes, samples, seed, allow_fewer, f"windows of {seq_len:,} tokens")
    rows = np.empty((len(domains), seq_len), np.int64)
    for domain in np.unique(domains):
        mine = domains == domain
        rows[mine] = files[domain].windows(picks[mine], seq_len)
    return rows, _identity("packed", files, weights, len(rows), seq_len, seed)


def padded_rows(
    files: tuple[TokenFile, ...],
    weights: tuple[float, ...],
    samples: int,
    seq_len: int,
    seed: int,
    pad_id: int,
    allow_fewer: bool = False,
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """One document a row, cut at `seq_len` or padded to it at the end: rows (samples, seq_len) int64, mask of the
    same shape (True where the row holds text), and what they are (JSON)."""
    sizes = [file.header.num_documents for file in files]
    domains, picks = _draw(files, weights, sizes, samples, seed, allow_fewer, "documents")
    rows = np.full((len(domains), seq_len), pad_id, np.int64)
    mask = np.zeros(rows.shape, bool)
    for domain in np.unique(domains):
        mine = np.flatnonzero(domains == domain)
        for row, start, stop in zip(mine, *files[domain].document_spans(picks[mine])):
            length = min(stop - start, seq_len)
            rows[row, :length] = files[domain].tokens[start : start + length]
            mask[row, :length] = True
    return rows, mask, _identity("padded", files, weights, len(rows), seq_len, seed)


def _draw(
    files: tuple[TokenFile, ...],
    weights: tuple[float, ...],
    sizes: list[int],
    samples: int,
    seed: int,
    allow_fewer: bool,
    unit: str,
) -> tuple[np.ndarray, np.ndarray]:
    """File of each sample and its window or document there: two (samples,) int64."""
    require_one_tokenizer(files)
    if samples < 1:
        raise MinitronError(f"{samples} calibration samples", "ask for 1 or more")
    shares = exact_weights(weights)
    wanted = counts(shares, samples)
    short = [
        f"{file.name} has {size:,} {unit} ({file.header.num_tokens:,} tokens), {want:,} are wanted"
        for file, size, want in zip(files, sizes, wanted)
        if size < want
    ]
    if short and not (allow_fewer and any(sizes)):
        raise MinitronError(
            f"too little calibration data: {'; '.join(short)}",
            "give more data, a smaller --samples or --seq-len, or add --allow-fewer to use what there is",
        )
    domains, numbers = sequence(shares, 0, samples)
    kept = numbers < np.array(sizes)[domains]
    domains, numbers = domains[kept], numbers[kept]
    picks = np.empty_like(numbers)
    for domain in np.unique(domains):
        mine = domains == domain
        picks[mine] = permute(numbers[mine], sizes[domain], derive(seed, _CALIBRATION, int(domain)))
    return domains, picks


def _identity(
    kind: str, files: tuple[TokenFile, ...], weights: tuple[float, ...], samples: int, seq_len: int, seed: int
) -> dict[str, Any]:
    return {
        "kind": kind,
        "samples": samples,
        "seq_len": seq_len,
        "seed": seed,
        "tokenizer_hash": files[0].header.tokenizer_hash,
        "sources": [
            {
                "names": sorted({source["name"] for source in file.header.sources}),
                "tokens_sha256": file.header.tokens_sha256,
                "separator": file.header.separator,
                "weight": weight,
            }
            for file, weight in zip(files, weights)
        ],
    }
