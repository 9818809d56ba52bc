"""What scores were made from, and whether two sets of them were made from the same."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minitron_cli.checkpoint.provenance import versions
from minitron_cli.checkpoint.tensor_digests import source_digest
from minitron_cli.errors import MinitronError

RAW_FORMAT = 1  # raised when the meaning of the running sums changes


def pass_identity(model: Path, data: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """All that decides the running sums: weights, samples, arithmetic. Batch size, device and mode do not."""
    return {
        "model": {"name": str(model), "digest": source_digest(model)},
        "data": dict(data),
        "tokenizer": data.get("tokenizer_hash"),
        "samples": data["samples"],
        "seq_len": data["seq_len"],
        "seed": data["seed"],
        "dtype": dtype,
        "format": RAW_FORMAT,
        "versions": versions(),
    }


def weights_identity(model: Path, metric: str, seed: int) -> dict[str, Any]:
    """All that decides scores that need no data."""
    return {
        "model": {"name": str(model), "digest": source_digest(model)},
        "metric": metric,
        "seed": seed if metric == "random" else None,
        "format": RAW_FORMAT,
        "versions": versions(),
    }


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Each way in which two identities differ, in words: `samples: 512 there, 1024 here`. Names and versions may."""
    found = []
    for key in ("format", "samples", "seq_len", "seed", "dtype", "tokenizer"):
        if there.get(key) != here.get(key):
            found.append(f"{key}: {_short(there.get(key))} there, {_short(here.get(key))} here")
    if there.get("model", {}).get("digest") != here["model"]["digest"]:
        found.append(f"model: {there.get('model', {}).get('name', 'unnamed')} there, {here['model']['name']} here")
    if "data" not in here or "data" not in there:
        if there.get("metric") != here.get("metric", "activation"):
            found.append(f"metric: {there.get('metric')} there, {here.get('metric', 'activation')} here")
        return found
    mine, theirs = here["data"], there["data"]
    keys = sorted((mine.keys() | theirs.keys()) - {"samples", "seq_len", "seed", "tokenizer_hash"})
    found += [f"data {key}: {_short(theirs.get(key))} there, {_short(mine.get(key))} here" for key in keys
              if theirs.get(key) != mine.get(key)]  # fmt: skip
    return found


def require_same(there: Mapping[str, Any], here: Mapping[str, Any], file: Path) -> None:
    """Refuse to mix: a MinitronError that names every difference."""
    if found := differences(there, here):
        raise MinitronError(
            f"{file} was measured with other settings: {'; '.join(found)}",
            "choose another output with -o, or add --force to measure again and replace it",
        )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:24]}...{text[-24:]}"
