"""Parquet files by row groups, through pyarrow alone (the `datasets` library is not needed for them)."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minitron_cli.errors import MinitronError

if TYPE_CHECKING:
    import pyarrow.parquet

_ROWS_PER_READ = 1024


def columns(file: Path) -> dict[str, bool]:
    """Column name -> whether it holds strings."""
    import pyarrow

    tests = (pyarrow.types.is_string, pyarrow.types.is_large_string, pyarrow.types.is_string_view)
    return {field.name: any(test(field.type) for test in tests) for field in _open(file).schema_arrow}


def split(file: Path, piece_bytes: int) -> Iterator[tuple[int, int, int]]:
    """`(first row group, past the last, bytes)` of pieces of about `piece_bytes` uncompressed each."""
    metadata = _open(file).metadata
    if not metadata.num_rows:
        raise MinitronError(f"{file} has no rows", "give a file that holds text")
    start, size = 0, 0
    for group in range(metadata.num_row_groups):
        size += metadata.row_group(group).total_byte_size
        if size >= piece_bytes or group + 1 == metadata.num_row_groups:
            yield start, group + 1, size
            start, size = group + 1, 0


def read(file: Path, start: int, stop: int, names: list[str | None]) -> Iterator[tuple[str, dict[str, Any]]]:
    """`(place, record)` of the rows in row groups [start, stop), with the columns `names` that are not None."""
    wanted = [name for name in names if name is not None]
    opened = _open(file)
    missing = [name for name in wanted if name not in opened.schema_arrow.names]
    if missing:
        raise MinitronError(
            f"{file} has no column {', '.join(missing)}",
            f"its columns: {', '.join(opened.schema_arrow.names)}; every file of a source needs the same ones",
        )
    for batch in opened.iter_batches(_ROWS_PER_READ, row_groups=list(range(start, stop)), columns=wanted):
        yield from ((str(file), record) for record in batch.to_pylist())


def _open(file: Path) -> "pyarrow.parquet.ParquetFile":
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(file)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise MinitronError(f"{file} is not a parquet file: {error}", "copy or convert it again") from error
