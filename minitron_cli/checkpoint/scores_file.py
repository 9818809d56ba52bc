"""Scores on disk: one safetensors file that carries the arrays, the raw sums they came from, and their identity."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from minitron_cli.checkpoint.atomic import atomic_file
from minitron_cli.errors import MinitronError
from minitron_cli.spec.scores import Scores

_RAW = "raw."


def write_scores(path: Path, scores: Scores, raw: Mapping[str, np.ndarray] | None = None) -> None:
    """Write scores atomically. `raw` accumulators are kept under their own names for later aggregations."""
    from safetensors.numpy import save

    arrays = {axis: np.ascontiguousarray(a) for axis, a in scores.values.items()}
    arrays.update({_RAW + name: np.ascontiguousarray(a) for name, a in (raw or {}).items()})
    with atomic_file(path) as temporary:
        # Not save_file, which makes files that only their owner can read.
        temporary.write_bytes(save(arrays, {"minitron": json.dumps(dict(scores.provenance), sort_keys=True)}))


def read_scores(path: Path) -> tuple[Scores, dict[str, np.ndarray]]:
    """Read (scores, raw accumulators); a file of another kind is refused by name."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise MinitronError(f"there is no scores file at {path}", "make one with `minitron importance MODEL --data D`")
    try:
        with safe_open(path, framework="numpy") as stream:
            metadata = stream.metadata() or {}
            arrays = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
        provenance = json.loads(metadata["minitron"])
    except (SafetensorError, KeyError, ValueError) as error:
        raise MinitronError(
            f"{path} is not a scores file of `minitron importance` ({error})",
            "give the .safetensors file that `minitron importance -o` wrote",
        ) from error
    raw = {name.removeprefix(_RAW): a for name, a in arrays.items() if name.startswith(_RAW)}
    values = {name: a for name, a in arrays.items() if not name.startswith(_RAW)}
    return Scores(values, provenance), raw
