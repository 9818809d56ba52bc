"""Tables as values; the templates make HTML of them."""

from collections.abc import Sequence
from dataclasses import dataclass

from minitron_cli.report.text import NOTHING


@dataclass(frozen=True, slots=True)
class Cell:
    """A figure with quiet lines under it; `strong` sets the first of them in bold, `share` (0 to 1) is the length of a
    bar under it.
    """

    text: str
    under: tuple[str, ...] = ()
    strong: bool = False
    share: float | None = None

    @property
    def bar(self) -> str:
        """The bar's length in CSS."""
        return f"{100 * min(1.0, max(0.0, self.share or 0.0)):.1f}%"


@dataclass(frozen=True, slots=True)
class Table:
    """Columns from `numbers_from` on hold numbers, to the right; the first cell of a row is its heading."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell | str]]
    numbers_from: int = 1

    def without_empty_columns(self) -> "Table":
        """The columns in which some row has something."""
        some = [i for i in range(len(self.columns)) if i == 0 or any(not _empty(row[i]) for row in self.rows)]
        rows = [[row[i] for i in some] for row in self.rows]
        return Table(self.caption, [self.columns[i] for i in some], rows, self.numbers_from)


def _empty(cell: Cell | str) -> bool:
    return cell in (NOTHING, "", Cell(NOTHING), Cell(""))
