"""What an evaluation measures, and how. Importable without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minitron_cli.data.source import Source


@dataclass(frozen=True, slots=True)
class Request:
    """One row of an evaluation: a task (or group) and how to run it. None leaves the task's own setting."""

    task: str
    shots: int | None = None
    metrics: tuple[str, ...] = ()  # "metric" or "metric,filter"; empty: all of the task's
    limit: float | None = None
    generation: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class LossOptions:
    """What text, and how it is cut. `seq_len` None: the model's context, at most 2048; `windows` None: all of them."""

    sources: tuple[Source, ...]
    seq_len: int | None = None
    windows: int | None = None
    separator: str = "auto"
    text_field: str | None = None
    against_reference: bool = False


@dataclass(frozen=True, slots=True)
class Options:
    """`losses` None: no perplexity; `requests` empty: no tasks; `cache` None: nothing is kept or found."""

    requests: tuple[Request, ...] = ()
    losses: LossOptions | None = None
    device: str = "auto"
    dtype: str = "auto"
    batch_size: int | None = None
    unsafe_code: bool = False
    trust_remote_code: bool = False
    throughput: bool = True
    cache: Path | None = None


def distinct_names(models: Sequence[str]) -> list[str]:
    """The shortest tail of each path that tells it from the others: a/x b/x -> a/x b/x, a/x a/y -> x y."""
    parts = [Path(model).parts for model in models]
    for depth in range(1, max(map(len, parts), default=1) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(set(map(str, map(Path, models)))):
            return names
    return list(models)
