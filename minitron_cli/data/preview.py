"""What tokenising would take, from a look at the first documents. Nothing is written."""

from typing import Any

import numpy as np

from minitron_cli.data.prepare import Job
from minitron_cli.data.readers import read_piece

_LOOK_BYTES, _LOOK_DOCUMENTS = 1 << 18, 1000


def preview(job: Job) -> dict[str, Any]:
    """Files, pieces and an estimate of the tokens (JSON): tokens per byte of the first documents, over all."""
    files: dict[Any, dict[str, Any]] = {}
    for task in job.tasks:
        where = task.piece.where
        row = files.setdefault(where, {"name": task.domain, "file": str(where), "bytes": 0})
        row["bytes"] += task.piece.size
    total = sum(row["bytes"] for row in files.values())
    tokens = round(total * _tokens_per_unit(job))
    return {
        "files": list(files.values()),
        "pieces": len(job.tasks),
        "estimated_tokens": tokens,
        "estimated_output_bytes": tokens * np.dtype(job.how.dtype).itemsize,
        "separator": job.separator,
        "text_field": job.text_field,
        "tokenizer_hash": job.tokenizer.hash,
    }


def _tokens_per_unit(job: Job) -> float:
    """Tokens per byte of text; per row for a data set, whose size is counted in rows."""
    task = job.tasks[0]
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
