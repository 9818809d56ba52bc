"""Documents in the order of their source, batch by batch, with the position after each batch.

A position is JSON and leads back to exactly the next document: no shuffle buffer stands between source and reader.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from minitron_cli.data.hub import stream_hub
from minitron_cli.data.readers import (
    Document,
    Fields,
    Piece,
    choose_fields,
    find_fields,
    read_piece,
    split_file,
    to_document,
)
from minitron_cli.data.source import HubName, Source
from minitron_cli.errors import MinitronError

BATCH = 256
Position = Any  # JSON; None is the beginning


@dataclass(frozen=True, slots=True)
class Text:
    """`batches(position)` reads one pass over the source from there: `(documents, position after them)`."""

    name: str
    batches: Callable[[Position], Iterator[tuple[list[Document], Position]]]


def open_text(source: Source, text_field: str | None) -> Text:
    """The text of a raw source, for reading in passes."""
    if source.tokens is not None:
        raise MinitronError(f"{source.spec} is a token file, which is never streamed", "leave the streaming option out")
    if source.hub is not None:
        hub = source.hub
        fields = _hub_fields(hub, text_field)
        return Text(source.spec, lambda position: _hub_batches(hub, fields, position))
    pieces = [(piece, find_fields(file, text_field)) for file in source.files for piece in split_file(file)]
    return Text(source.spec, lambda position: _file_batches(pieces, position))


def _file_batches(pieces: list[tuple[Piece, Fields]], position: Position) -> Iterator[tuple[list[Document], Position]]:
    """Position: the piece, and how many of its documents have been read."""
    first, done = position or (0, 0)
    for number in range(first, len(pieces)):
        documents = islice(read_piece(*pieces[number]), done, None)
        while batch := list(islice(documents, BATCH)):
            done += len(batch)
            yield batch, [number, done]
        done = 0


def _hub_batches(hub: HubName, fields: Fields, position: Position) -> Iterator[tuple[list[Document], Position]]:
    """Position: the state of the iterable data set."""
    rows = stream_hub(hub)
    if position is not None:
        rows.load_state_dict(position)
    assert fields.text is not None, "a data set has columns"
    records = iter(rows)
    while batch := [to_document(hub.name, row, fields.text, fields.domain) for row in islice(records, BATCH)]:
        yield batch, rows.state_dict()


def _hub_fields(hub: HubName, text_field: str | None) -> Fields:
    first = next(iter(stream_hub(hub)), None)
    if first is None:
        raise MinitronError(f"data set {hub.name} has no rows in split {hub.split}", "choose another split")
    return choose_fields(hub.name, {name: isinstance(value, str) for name, value in first.items()}, text_field)
