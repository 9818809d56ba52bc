"""Files of text -> pieces that are read apart from one another, and the documents of a piece.

A piece is the unit of parallel work and of resuming: a range of bytes of a .jsonl or .txt file, of row groups of a
.parquet file, of rows of a data set, or a whole .json file. Pieces depend on the files alone, never on the number of
processes.
"""

import codecs
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from minitron_cli.data import parquet
from minitron_cli.data.source import HubName
from minitron_cli.errors import MinitronError

PIECE_BYTES = 32 << 20
# A .txt file is one document. Above this size it is cut at the next line end, for no model reads that far back.
TEXT_DOCUMENT_BYTES = 1 << 20
_ROWS_PER_PIECE = 50_000
_TEXT_FIELDS = ("text", "content")
_DOMAIN = "domain"


@dataclass(frozen=True, slots=True)
class Fields:
    """The columns that are read: `text`, and `domain` where the records have one."""

    text: str | None
    domain: str | None


@dataclass(frozen=True, slots=True)
class Piece:
    """Part [start, stop) of `where`, in the unit of its kind; `size` is its weight on the progress bar in bytes."""

    kind: str  # jsonl, json, txt, parquet, hub
    where: Path | HubName
    start: int
    stop: int
    size: int


@dataclass(frozen=True, slots=True)
class Document:
    place: str  # for messages
    text: str
    domain: str | None


def split_file(file: Path) -> tuple[Piece, ...]:
    """The pieces of a file, in order."""
    size = file.stat().st_size
    if size == 0:
        raise MinitronError(f"{file} is empty", "give a file that holds text")
    kind = _kind(file)
    if kind == "json":
        return (Piece(kind, file, 0, size, size),)
    if kind == "parquet":
        return tuple(Piece(kind, file, start, stop, size) for start, stop, size in parquet.split(file, PIECE_BYTES))
    return tuple(
        Piece(kind, file, start, min(start + PIECE_BYTES, size), min(PIECE_BYTES, size - start))
        for start in range(0, size, PIECE_BYTES)
    )


def split_hub(hub: HubName) -> tuple[Piece, ...]:
    """The pieces of a data set of the `datasets` library, which is downloaded here if it is not yet."""
    from minitron_cli.data.hub import load_hub

    rows = load_hub(hub).num_rows
    if not rows:
        raise MinitronError(f"data set {hub.name} has no rows in split {hub.split}", "choose another split")
    ranges = [(start, min(start + _ROWS_PER_PIECE, rows)) for start in range(0, rows, _ROWS_PER_PIECE)]
    return tuple(Piece("hub", hub, start, stop, stop - start) for start, stop in ranges)


def find_fields(where: Path | HubName, text_field: str | None) -> Fields:
    """The columns to read from `where`: `text_field` if named, else `text`, `content` or the only string column."""
    if isinstance(where, HubName):
        from minitron_cli.data.hub import string_columns

        columns = string_columns(where)
    elif _kind(where) == "txt":
        return Fields(None, None)
    elif _kind(where) == "parquet":
        columns = parquet.columns(where)
    else:
        first = next(_records(where, 0, where.stat().st_size), None)
        if first is None:
            raise MinitronError(f"{where} has no records", "give a file that holds text")
        record = first[1]
        columns = {name: isinstance(value, str) for name, value in record.items()}
    return choose_fields(str(where.name), columns, text_field)


def choose_fields(name: str, columns: dict[str, bool], text_field: str | None) -> Fields:
    """Choose among `columns`, a map of column name to whether it holds strings."""
    strings = [column for column, is_string in columns.items() if is_string]
    listed = ", ".join(column if is_string else f"{column} (not text)" for column, is_string in columns.items())
    domain = _DOMAIN if _DOMAIN in strings and text_field != _DOMAIN else None
    if text_field is not None:
        if text_field not in strings:
            raise MinitronError(f"{name} has no text field {text_field!r}", f"its columns: {listed or 'none'}")
        return Fields(text_field, domain)
    others = [column for column in strings if column != domain]
    for column in _TEXT_FIELDS:
        if column in strings:
            return Fields(column, domain)
    if len(others) != 1:
        raise MinitronError(
            f"which column of {name} is the text? its columns: {listed or 'none'}", "name it with --text-field"
        )
    return Fields(others[0], domain)


def read_piece(piece: Piece, fields: Fields) -> Iterator[Document]:
    """The documents of `piece` in order, empty ones included."""
    if isinstance(piece.where, HubName):
        from minitron_cli.data.hub import read_rows

        rows: Iterator[tuple[str, dict[str, Any]]] = read_rows(
            piece.where, piece.start, piece.stop, [fields.text, fields.domain]
        )
    elif piece.kind == "txt":
        yield from (
            Document(str(piece.where), text, None) for text in _text_documents(piece.where, piece.start, piece.stop)
        )
        return
    elif piece.kind == "parquet":
        rows = parquet.read(piece.where, piece.start, piece.stop, [fields.text, fields.domain])
    else:
        rows = _records(piece.where, piece.start, piece.stop)
    assert fields.text is not None, "only .txt files have no columns"
    for place, record in rows:
        yield to_document(place, record, fields.text, fields.domain)


def to_document(place: str, record: dict[str, Any], text_field: str, domain_field: str | None) -> Document:
    """The document of a record; `place` is where it stands, for messages."""
    if text_field not in record:
        raise MinitronError(
            f"{place}: no field {text_field!r}", f"its fields: {', '.join(record)}; name another with --text-field"
        )
    text = record[text_field]
    if text is not None and not isinstance(text, str):
        raise MinitronError(f"{place}: field {text_field!r} is not text but {type(text).__name__}", "clean the data")
    domain = record.get(domain_field) if domain_field else None
    return Document(place, text or "", domain if isinstance(domain, str) else None)


def _kind(file: Path) -> str:
    """By suffix; a .json file that is not one array is read as JSON lines, which it usually is."""
    kind = file.suffix.lower().lstrip(".")
    if kind != "json":
        return kind
    with file.open("rb") as stream:
        return "json" if stream.read(64).removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"[" else "jsonl"


def _records(file: Path, start: int, stop: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """`(place, record)` for the JSON records whose line begins in [start, stop)."""
    if _kind(file) == "json":
        yield from _json_array(file)
        return
    with file.open("rb") as stream:
        if start:
            stream.seek(start - 1)
            stream.readline()  # the line that began before this piece belongs to the piece before
        position = stream.tell()
        while position < stop and (line := stream.readline()):
            if line.strip():
                yield f"{file} at byte {position:,}", _json_object(file, position, line)
            position += len(line)


def _json_object(file: Path, position: int, line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except UnicodeDecodeError as error:
        raise _not_utf8(f"{file}: line {_line_number(file, position)}", error.start) from error
    except (ValueError, RecursionError):  # RecursionError: brackets in brackets without end
        record = None
    if not isinstance(record, dict):
        raise MinitronError(
            f"{file}: line {_line_number(file, position)} is not a JSON object",
            "a .jsonl file has one JSON object per line; plain text belongs in a .txt file",
        )
    return record


def _not_utf8(place: str, byte: int) -> MinitronError:
    return MinitronError(f"{place} is not UTF-8 text: byte {byte:,}", "convert it to UTF-8 (iconv -t utf-8)")


def _line_number(file: Path, position: int) -> int:
    with file.open("rb") as stream:
        count = 1
        while position > 0 and (block := stream.read(min(position, 1 << 20))):
            count += block.count(b"\n")
            position -= len(block)
    return count


def _json_array(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        found = json.loads(file.read_bytes())
    except UnicodeDecodeError as error:
        raise _not_utf8(str(file), error.start) from error
    except (ValueError, RecursionError) as error:
        raise MinitronError(
            f"{file} is not JSON: {error}", "a .json file is an array of objects, or lines of them"
        ) from error
    wrong = [index for index, record in enumerate(found) if not isinstance(record, dict)]
    if wrong or not found:
        what = f"element {wrong[0]} is not an object" if wrong else "the array is empty"
        raise MinitronError(f"{file}: {what}", "a .json file is an array of objects with a text field")
    yield from ((f"{file} element {index}", record) for index, record in enumerate(found))


def _text_documents(file: Path, start: int, stop: int) -> Iterator[str]:
    """The documents of a .txt file whose nominal start, a multiple of TEXT_DOCUMENT_BYTES, lies in [start, stop)."""
    with file.open("rb") as stream:
        for nominal in range(start, stop, TEXT_DOCUMENT_BYTES):
            first, last = (_line_end(stream, edge) for edge in (nominal, nominal + TEXT_DOCUMENT_BYTES))
            stream.seek(first)
            raw = stream.read(last - first)
            try:
                text = raw.decode("utf-8-sig" if first == 0 else "utf-8")
            except UnicodeDecodeError as error:
                raise _not_utf8(str(file), first + error.start) from error
            if last > first:  # a line longer than a document leaves nothing to those that it covers
                yield text


def _line_end(stream: BinaryIO, edge: int) -> int:
    """The first position at or after `edge` where a line begins; 0 for 0, the end of the file past the last line."""
    if edge == 0:
        return 0
    stream.seek(edge - 1)
    stream.readline()
    return stream.tell()
