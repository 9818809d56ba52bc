"""The request of `minitron bench`, its checks and its execution. Importable without torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from minitron_cli.checkpoint.atomic import check_file
from minitron_cli.evaluate.bench import Cell, batch_ceiling, check_context, measure, parse_grid, unsteady
from minitron_cli.evaluate.options import distinct_names
from minitron_cli.evaluate.request import write_results
from minitron_cli.spec.limits import count, require

if TYPE_CHECKING:
    from minitron_cli.evaluate.bench import Subject

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchRequest:
    """All options of `minitron bench`; a field is named as its flag. The first model is the reference.

    `memory` is a budget in bytes, for which the sequences that would fit are counted.
    """

    models: tuple[str, ...]
    grid: str = "128x128"
    batch_sizes: str = "1"
    repeats: Annotated[int, count()] = 5
    warmup_rounds: Annotated[int, count(0)] = 1
    memory: Annotated[int | None, count()] = None
    engine: str = "hf"
    device: str = "auto"
    dtype: str = "auto"
    trust_remote_code: bool = False
    output: Path | None = None

    def __post_init__(self) -> None:
        require(self, "bench")

    @property
    def cells(self) -> tuple[Cell, ...]:
        return parse_grid(self.grid, self.batch_sizes)


def check(request: BenchRequest) -> list[Path]:
    """Make every check that needs no weights; the directories of the models."""
    from minitron_cli.checkpoint.reader import load_config, resolve_model
    from minitron_cli.evaluate.engines import check_engine
    from minitron_cli.hf.context import context_length
    from minitron_cli.hf.devices import choose_device, choose_dtype

    cells = request.cells
    if request.output:
        check_file(request.output, request.models)
    check_engine(request.engine)
    choose_dtype(request.dtype, choose_device(request.device))
    paths = [resolve_model(model) for model in request.models]
    contexts = [context_length(load_config(path)) for path in paths]
    check_context(list(zip(distinct_names(request.models), contexts)), cells)
    return paths


def bench(request: BenchRequest, say: Say = lambda text: None) -> dict[str, Any]:
    """Time all models in the same rounds; the results object, which is written to `output` where one is given."""
    from minitron_cli.evaluate.engines import make_subjects
    from minitron_cli.hf.devices import choose_device, machine_words

    paths, cells = check(request), request.cells
    subjects = make_subjects(
        request.engine, paths, distinct_names(request.models),
        device=request.device, dtype=request.dtype, trust_remote_code=request.trust_remote_code,
    )  # fmt: skip
    rounds = f"{request.warmup_rounds} + {request.repeats} rounds"
    say(f"{len(subjects)} models, {len(cells)} cells, {rounds}, engine {request.engine}")
    rows = measure(subjects, cells, repeats=request.repeats, warmup=request.warmup_rounds, say=say)
    if warning := unsteady(rows):
        say(f"warning: {warning}")
    found = _results(request, subjects, rows, machine_words(choose_device(request.device)))
    if request.output:
        write_results(found, request.output, say)
    return found


def _results(
    request: BenchRequest, subjects: list[Subject], rows: list[dict[str, Any]], machine: str
) -> dict[str, Any]:
    from minitron_cli.checkpoint.provenance import versions

    weights = {subject.name: subject.weight_bytes for subject in subjects}
    for row in rows:
        row["batch_ceiling"] = _ceiling(request.memory, weights[row["model"]], row)
    return {
        "format": 1,
        "kind": "bench",
        "reference": subjects[0].name,
        "settings": {
            "machine": machine,
            **{name: getattr(request, name) for name in ("engine", "device", "dtype", "grid", "repeats", "memory")},
        },
        "models": [
            {"name": s.name, "path": path, "parameters": s.parameters, "weight_bytes": s.weight_bytes}
            for s, path in zip(subjects, request.models)
        ],
        "rows": rows,
        "versions": versions(),
    }


def _ceiling(memory: int | None, weight_bytes: int, row: Mapping[str, Any]) -> int | None:
    """Sequences that fit beside the weights, where a budget was given and the KV cache was measured."""
    if not memory or not row["kv_bytes"]:
        return None
    return batch_ceiling(memory, weight_bytes, row["kv_bytes"] // row["batch"])
