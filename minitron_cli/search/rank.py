"""Rank shapes: forecast every candidate, measure the best few, refine the best of those (Minitron, section 2.3)."""

from collections.abc import Callable

from minitron_cli.checkpoint.reader import open_checkpoint
from minitron_cli.search.budget import fast_enough
from minitron_cli.search.identity import check_request, claim
from minitron_cli.search.refine import refine
from minitron_cli.search.request import SearchRequest
from minitron_cli.search.result import Entry, SearchResult, mark_ties
from minitron_cli.search.shapes import accepted, enumerate_shapes, single_cuts, window_length
from minitron_cli.search.stretches import stretches
from minitron_cli.search.timing import ShapeTimer
from minitron_cli.search.vocabulary import count_vocabulary
from minitron_cli.search.workspace import Workspace, held_out
from minitron_cli.spec.axes import COUNTED_AXES
from minitron_cli.spec.proxy import calibrate, forecast
from minitron_cli.spec.search import Candidate
from minitron_cli.spec.shape import Shape, num_parameters, shape_name

Say = Callable[[str], None]


def search(request: SearchRequest, say: Say) -> SearchResult:
    """Rank every shape in the budget. Stages already done by an earlier call with the same output are found again."""
    workspace = _open(request)
    found = enumerate_shapes(workspace.source, request)
    claim(request, workspace.seq_len, workspace.vocabulary)
    say(f"{len(found)} shapes in the budget; forecasting from the importance they keep")
    say("measuring the source and one cut per axis, to weigh the axes against each other")
    source = workspace.source.shape
    source_loss = float(workspace.loss(source).mean())
    found = accepted(workspace.source, found, say)
    weights = _weigh(workspace, [c.shape for c in found], source_loss)
    entries = [Entry(c, forecast(workspace.features(c.shape), weights)) for c in found]
    entries.sort(key=Entry.sort_key)
    front = _timed(workspace, entries, say)
    for number, entry in enumerate(front, 1):
        entry.losses = workspace.loss(entry.candidate.shape)
        name = request.name(entry.candidate.shape)
        say(f"measured {number}/{len(front)}: {name} {entry.losses.mean():.4f} {request.unit}")
    front.sort(key=Entry.sort_key)
    if request.refine:
        refine(workspace, front[: request.refine], say)
    bound = request.speed is not None and request.speed.binds
    too_slow = [e for e in entries if request.speed and e.speed and not e.speed.holds(request.speed)]
    entries = sorted(front if bound else entries, key=Entry.sort_key)
    mark_ties(entries)
    longer = {}
    if (counted := workspace.vocabulary) is not None:
        sizes = {entry.candidate.shape[axis] for entry in entries for axis in COUNTED_AXES}
        longer = {size: counted.lengthening(size) for size in sorted(sizes)}
    return SearchResult(source, source_loss, entries, weights, too_slow, request.unit, longer)


def _open(request: SearchRequest) -> Workspace:
    source = open_checkpoint(request.model)
    scores = check_request(source, request)
    files, seq_len = held_out(request, source.path), window_length(source, request)
    vocabulary = count_vocabulary(source, request)
    ends = stretches(source, files, seq_len, request.eval_windows) if request.cuts_vocabulary else None
    return Workspace(source, scores, files, seq_len, request, vocabulary, ends)


def _timed(workspace: Workspace, entries: list[Entry], say: Say) -> list[Entry]:
    """The entries to measure the loss of: the best by their forecast, under a speed budget those that meet it."""
    request, source = workspace.request, workspace.source
    if request.speed is None:
        return entries[: request.measure]
    timer = ShapeTimer(workspace, request.speed, say)
    if request.speed.binds:
        size = num_parameters(source.family.expected(source.config), source.shape)
        return fast_enough(timer, Candidate(source.shape, size, size), entries, request.measure, say)
    for entry in entries[: request.measure]:
        entry.speed = timer.speed(entry.candidate.shape, shape_name(entry.candidate.shape))
    return entries[: request.measure]


def _weigh(workspace: Workspace, shapes: list[Shape], source_loss: float) -> dict[str, float]:
    """Weights of the forecast, from measured cuts of one axis each at the sizes that the candidates ask for.

    An additive model: what two cuts cost together is taken to be what they cost apart. An axis of which no such cut can
    be built keeps the weight 1.
    """
    measured = []
    for single in single_cuts(workspace.source, shapes):
        loss = float(workspace.loss(single).mean())
        measured.append((workspace.features(single), loss - source_loss))
    return calibrate(measured)
