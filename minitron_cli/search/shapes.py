"""The shapes that a search ranks, from the source's config and headers alone: no torch."""

from collections.abc import Callable
from math import isfinite

from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.errors import MinitronError
from minitron_cli.hf.context import context_length, sequence_length
from minitron_cli.prune.acceptance import obstacles
from minitron_cli.search.request import SearchRequest
from minitron_cli.spec.axes import COUNTED_AXES, SCORED_AXES
from minitron_cli.spec.search import Candidate, candidates, default_grid
from minitron_cli.spec.shape import Shape, can_be_cut, num_parameters

MAX_SEQ_LEN = 1024


def enumerate_shapes(source: Checkpoint, request: SearchRequest) -> list[Candidate]:
    """Candidates on the grid, or an error that names the range of the grid's sizes."""
    grid = dict(request.grid or default_grid(source.shape))
    if request.ffn_factors:
        grid.pop("ffn", None)
        if "ffn" not in source.shape:
            raise MinitronError(f"{source.family.name} models have no --ffn", "leave --ffn-factors out")
    found = candidates(
        source.family, source.config, source.shape, grid, request.window, ffn_factors=request.ffn_factors
    )
    if not found:
        lines = source.family.expected(source.config)
        low = num_parameters(lines, source.shape.with_(**{axis: min(values) for axis, values in grid.items()}))
        high = num_parameters(lines, source.shape.with_(**{axis: max(values) for axis, values in grid.items()}))
        window = f"has {request.window.low:,.0f} to {request.window.high:,.0f} parameters"
        raise MinitronError(
            f"no shape on the grid {window if isfinite(request.window.high) else 'fits the budget'}",
            f"the grid reaches from {low:,} to {high:,}; widen --tolerance, or finer: --grid ffn=1024:4096:64",
        )
    return found


def accepted(source: Checkpoint, found: list[Candidate], say: Callable[[str], None]) -> list[Candidate]:
    """The shapes that transformers builds and runs."""
    reasons = obstacles(source, [candidate.shape for candidate in found])
    kept = [candidate for candidate, why in zip(found, reasons) if why is None]
    if len(kept) < len(found):
        why = next(why for why in reasons if why is not None)
        if not kept:
            raise MinitronError(f"transformers rejects every shape in the budget: {why}", "give another --grid")
        say(f"{len(found) - len(kept)} shapes left out, which transformers rejects: {why}")
    return kept


def single_cuts(source: Checkpoint, shapes: list[Shape]) -> list[Shape]:
    """The source with one axis cut to a middle size of the candidates', for every axis that they cut.

    Heads are cut with their keys and values where every head has its own, and with the hidden size where the model
    class wants both together. A cut that cannot be built is tried at the next size.
    """
    found = []
    for axis in (*SCORED_AXES, *COUNTED_AXES):
        sizes = sorted({shape[axis] for shape in shapes if axis in source.shape and shape[axis] != source.shape[axis]})
        middle = sizes[len(sizes) // 2] if sizes else 0
        nearest = sorted(sizes, key=lambda size: (abs(size - middle), size))
        tries = (cut for size in nearest for cut in _cuts_to(source.shape, shapes, axis, size))
        cut = next((cut for cut in tries if _buildable(source, cut)), None)
        found += [cut] if cut is not None and cut not in found else []
    return found


def _cuts_to(source: Shape, shapes: list[Shape], axis: str, size: int) -> list[Shape]:
    ungrouped = axis == "head" and source.get("kv") == source["head"]
    alone = source.with_(**{axis: size}, **({"kv": size} if ungrouped else {}))
    if axis not in ("hidden", "head"):
        return [alone]
    model = next(shape for shape in shapes if shape[axis] == size)
    grouped = {one for pair in source.groups_of() for one in pair}
    together = {other: model[other] for other in ("hidden", "head", *grouped) if other in source}
    return [alone, source.with_(**together)]


def _buildable(source: Checkpoint, shape: Shape) -> bool:
    return can_be_cut(source.family, source.shape, shape) and obstacles(source, [shape]) == [None]


def window_length(source: Checkpoint, request: SearchRequest) -> int:
    """Tokens of a held-out window and of a training sequence."""
    return sequence_length(request.seq_len, MAX_SEQ_LEN, {str(source.path): context_length(source.config)})
