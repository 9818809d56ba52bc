"""What tokenising would take, from a look at the first documents of each source. Nothing is written."""

from typing import Any

import numpy as np

from minitron_cli.data.encode import Task
from minitron_cli.data.prepare import Job
from minitron_cli.data.readers import read_piece

_LOOK_BYTES, _LOOK_DOCUMENTS = 1 << 18, 1000


def preview(job: Job) -> dict[str, Any]:
    """Files, pieces and an estimate of the tokens (JSON): tokens per byte of each source's first documents."""
    files: dict[Any, dict[str, Any]] = {}
    rates: dict[str, float] = {}
    estimate = 0.0
    for task in job.tasks:
        where = task.piece.where
        row = files.setdefault(where, {"name": task.domain, "file": str(where), "bytes": 0})
        row["bytes"] += task.piece.size
        if task.domain not in rates:
            rates[task.domain] = _tokens_per_unit(job, task)
        estimate += task.piece.size * rates[task.domain]
    tokens = round(estimate)
    return {
        "files": list(files.values()),
        "pieces": len(job.tasks),
        "estimated_tokens": tokens,
        "estimated_output_bytes": tokens * np.dtype(job.how.dtype).itemsize,
        "separator": job.separator,
        "text_field": job.text_field,
        "tokenizer_hash": job.tokenizer.hash,
    }


def _tokens_per_unit(job: Job, task: Task) -> float:
    """Tokens per byte of a piece's text; per row for a data set, whose size is counted in rows."""
    size = count = 0
    texts = []
    for document in read_piece(task.piece, task.fields):
        texts.append(document.text)
        size, count = size + len(document.text.encode("utf-8", "replace")), count + 1
        if size >= _LOOK_BYTES or count >= _LOOK_DOCUMENTS:
            break
    encoded = job.tokenizer.backend.encode_batch_fast(texts, add_special_tokens=False)
    tokens = sum(len(row.ids) + len(job.how.before) + len(job.how.after) for row in encoded)
    return tokens / max(count if task.piece.kind == "hub" else size, 1)
