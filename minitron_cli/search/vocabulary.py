"""The vocabulary as an axis of a search: the source's tokens, counted once."""

import os

from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.prune.request import request_from_options
from minitron_cli.prune.vocabulary import Counting, Vocabulary, read_vocabulary
from minitron_cli.search.request import SearchRequest
from minitron_cli.spec.axes import COUNTED_AXES, FLAG_OF_AXIS


def count_vocabulary(source: Checkpoint, request: SearchRequest) -> Vocabulary | None:
    """The source's tokens as the request's text uses them, None where none are cut; sizes too small are refused."""
    for axis in COUNTED_AXES:
        if sizes := [size for size in (request.grid or {}).get(axis, ()) if size < source.shape[axis]]:
            cut = request_from_options(request.model, {FLAG_OF_AXIS[axis]: min(sizes), "data": request.data})
            found = read_vocabulary(cut, source, Counting(workers=os.cpu_count() or 1))
            found.kept(min(sizes))
            return found
    return None
