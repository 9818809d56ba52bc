"""A search's result as data: what the table shows, search.json, and the chosen shape as the next command."""

import json
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any

from minitron_cli.checkpoint.atomic import atomic_file
from minitron_cli.search.request import SearchRequest
from minitron_cli.search.result import Entry, SearchResult, standard_error
from minitron_cli.search.workspace import prune_inputs
from minitron_cli.spec.shape import cut_flags


def facts(result: SearchResult, request: SearchRequest) -> dict[str, Any]:
    """Everything found, best first, and the best shape as a recipe step and as a command line."""
    best, speed = result.entries[0].candidate.shape, request.speed
    cut = cut_flags(result.source, best)
    inputs = prune_inputs(request, result.source, best)
    given = inputs | {flag: (str(size),) for flag, size in cut.items()}
    words = [word for flag, values in given.items() for value in values for word in (f"--{flag}", value)]
    as_recipe = {name: list(values) if len(values) > 1 else values[0] for name, values in inputs.items()}
    return {
        "output": str(request.output),
        "unit": result.unit,
        "source_loss": result.source_loss,
        "forecast_weights": dict(result.weights),
        "longer": {str(size): share for size, share in result.longer.items()},
        "candidates": [_entry(request, entry) for entry in result.entries],
        "too_slow": [_entry(request, entry) for entry in result.too_slow],
        "speed_budget": asdict(speed) | {"cells": [str(cell) for cell in speed.cells]} if speed is not None else None,
        "step": {"verb": "prune", "inputs": {"model": request.model, **as_recipe}, "options": cut},
        "next": shlex.join(["minitron", "prune", request.model, *words]),
    }


def _entry(request: SearchRequest, entry: Entry) -> dict[str, Any]:
    found = {
        "name": request.name(entry.candidate.shape),
        "shape": dict(entry.candidate.shape.sizes),
        "parameters": entry.candidate.parameters,
        "non_embedding_parameters": entry.candidate.non_embedding,
        "forecast": entry.forecast,
        "tied": entry.tied,
        "speed": asdict(entry.speed) if entry.speed else None,
    }
    for key, losses in (("loss", entry.losses), ("refined", entry.refined)):
        found[key] = float(losses.mean()) if losses is not None else None
        found[f"{key}_stderr"] = standard_error(losses) if losses is not None else None
    return found


def write_facts(directory: Path, found: dict[str, Any]) -> None:
    with atomic_file(directory / "search.json") as temporary:
        temporary.write_text(json.dumps(found, indent=1) + "\n")
