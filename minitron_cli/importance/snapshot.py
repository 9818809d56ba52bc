"""What an interrupted pass has done so far, beside the output it was making."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minitron_cli.checkpoint.scores_file import read_scores, write_scores
from minitron_cli.importance.identity import differences
from minitron_cli.importance.sums import Row, Rows
from minitron_cli.spec.scores import Scores

SECONDS = 60.0  # between snapshots


@dataclass(frozen=True, slots=True)
class Progress:
    """Running sums over what is done: `done` samples of this process's share (resident), or layers (streamed)."""

    raw: Mapping[str, np.ndarray]
    rows: Rows
    done: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Where a process keeps its progress; `identity` includes how the work is shared out."""

    path: Path
    identity: Mapping[str, Any]

    def save(self, progress: Progress) -> None:
        provenance = {**self.identity, "rows": rows_to_json(progress.rows), "done": progress.done}
        write_scores(self.path, Scores({}, provenance), progress.raw)

    def load(self) -> Progress | None:
        """The progress of an interrupted run of the very same work, or None."""
        if not self.path.is_file():
            return None
        stored, raw = read_scores(self.path)
        if differences(stored.provenance, self.identity) or stored.provenance.get("work") != self.identity.get("work"):
            return None
        return Progress(raw, rows_from_json(stored.provenance["rows"]), int(stored.provenance["done"]))

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)


def rows_to_json(rows: Rows) -> dict[str, list[dict[str, Any]]]:
    return {axis: [asdict(row) for row in found] for axis, found in rows.items()}


def rows_from_json(found: Mapping[str, list[dict[str, Any]]]) -> Rows:
    return {axis: [Row(int(r["layer"]), tuple(r["readers"])) for r in rows] for axis, rows in found.items()}
