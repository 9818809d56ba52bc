"""Scores on disk: one safetensors file. Whatever writes this format can decide what `minitron prune` keeps.

    hidden       (hidden,)                      one array per axis, floating point, finite; higher is more important
    ffn          (layer, ffn)                   axes that every layer has for itself come after the layer
    head         (layer, head)
    layer        (layer,)
    expert       (layer, expert)
    expert_ffn   (layer, expert, expert_ffn)
    shared_ffn   (layer, shared_ffn)
    raw.*        running sums that `minitron importance` aggregates anew; prune does not read them

An axis that is not cut can be left out. Scores are 0 or above, but for those of layers. The metadata has one key,
"minitron", a JSON object:

    "model"      {"name": path or hub id, "digest": tensor_digests.source_digest of the model}; prune compares it
    "format"     1, or absent
    "digest"     sha256 of arrays and of the rest of the object (`contents_digest`), or absent: then nothing is checked
    ...          anything else: how the scores were measured
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from minitron_cli.checkpoint.atomic import atomic_file
from minitron_cli.checkpoint.seal import DIGEST
from minitron_cli.errors import MinitronError
from minitron_cli.spec.scores import Scores

FORMAT = 1
_RAW = "raw."
_HINT = "give the .safetensors file that `minitron importance -o` wrote"


def write_scores(path: Path, scores: Scores, raw: Mapping[str, np.ndarray] | None = None) -> None:
    """Write scores atomically. `raw` accumulators are kept under their own names for later aggregations."""
    from safetensors.numpy import save

    arrays = {axis: np.ascontiguousarray(a) for axis, a in scores.values.items()}
    arrays.update({_RAW + name: np.ascontiguousarray(a) for name, a in (raw or {}).items()})
    facts = {**scores.provenance, DIGEST: contents_digest(arrays, scores.provenance)}
    with atomic_file(path) as temporary:
        # Not save_file, which makes files that only their owner can read.
        temporary.write_bytes(save(arrays, {"minitron": json.dumps(facts, sort_keys=True)}))


def read_scores(path: Path) -> tuple[Scores, dict[str, np.ndarray]]:
    """Read (scores, raw accumulators). A file of another kind or format, or an altered one, is refused."""
    arrays, facts = _read(path)
    if facts.get("format", FORMAT) != FORMAT:
        raise MinitronError(f"{path} has format {facts['format']!r}, this version reads {FORMAT}", _HINT)
    digest = facts.pop(DIGEST, None)
    if digest is not None and digest != contents_digest(arrays, facts):
        raise MinitronError(
            f"{path} was altered after it was written (its digest does not match)", "restore it, or measure again"
        )
    raw = {name.removeprefix(_RAW): a for name, a in arrays.items() if name.startswith(_RAW)}
    values = {name: a for name, a in arrays.items() if not name.startswith(_RAW)}
    return Scores(values, facts), raw


def has_digest(path: Path) -> bool:
    """Whether a scores file can be checked: those of older versions carry no digest."""
    return DIGEST in _read(path)[1]


def contents_digest(arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> str:
    """sha256 over name, type, shape and bytes of every array in the order of names, then over the facts as JSON."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(json.dumps([name, array.dtype.str, list(array.shape)]).encode())
        digest.update(array.data)
    digest.update(json.dumps(json.loads(json.dumps(dict(facts))), sort_keys=True).encode())
    return digest.hexdigest()


def _read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """(arrays, facts) of a scores file."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise MinitronError(f"there is no scores file at {path}", "make one with `minitron importance MODEL --data D`")
    try:
        with safe_open(path, framework="numpy") as stream:
            metadata = stream.metadata() or {}
            arrays = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
        facts = json.loads(metadata["minitron"])
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise MinitronError(f"{path} is not a scores file of `minitron importance` ({error})", _HINT) from error
    if not isinstance(facts, dict) or not isinstance(facts.get("model", {}), dict):
        raise MinitronError(f"{path} is not a scores file: its metadata is not an object with a model", _HINT)
    return arrays, facts
