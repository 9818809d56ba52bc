"""Carry out a search: rank, write what was found."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from minitron_cli.search.flags import require_ranking
from minitron_cli.search.parallel import parse_devices
from minitron_cli.search.picture import write_picture
from minitron_cli.search.rank import search
from minitron_cli.search.request import SearchRequest
from minitron_cli.search.result import SearchResult
from minitron_cli.search.table import facts, write_facts


@dataclass(frozen=True, slots=True)
class Searched:
    """The ranking, the facts as search.json holds them, and the picture of loss against size."""

    result: SearchResult
    facts: Mapping[str, Any]
    picture: Path


def search_and_write(
    request: SearchRequest, devices: str | None = None, say: Callable[[str], None] = lambda text: None
) -> Searched:
    """Rank every shape in the budget, on several `devices` at once where refining; writes `request.output`."""
    require_ranking(request)
    request = replace(request, devices=parse_devices(devices, request.device))
    result = search(request, say)
    found = facts(result, request)
    write_facts(request.output, found)
    return Searched(result, found, write_picture(request.output / "pareto.svg", result))
