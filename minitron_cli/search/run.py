"""The search: forecast every candidate, measure the best few, refine the best of those (Minitron, section 2.3)."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minitron_cli.checkpoint.reader import Checkpoint, open_checkpoint
from minitron_cli.checkpoint.scores_file import read_scores
from minitron_cli.data.prepare import token_files
from minitron_cli.data.source import parse_sources
from minitron_cli.data.tokens import TokenFile
from minitron_cli.evaluate.bench import check_context
from minitron_cli.hf.context import context_length
from minitron_cli.search.budget import fast_enough
from minitron_cli.search.identity import check_place, claim
from minitron_cli.search.measure import cut_candidate, held_out_losses
from minitron_cli.search.options import Entry, SearchOptions, SearchResult
from minitron_cli.search.shapes import accepted, enumerate_shapes, single_cuts, window_length
from minitron_cli.search.speed import Stopwatch
from minitron_cli.spec.proxy import calibrate, features, forecast
from minitron_cli.spec.scores import Scores
from minitron_cli.spec.search import Candidate
from minitron_cli.spec.shape import Shape, num_parameters, shape_name

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Bench:
    """What measuring needs: the source, its scores, the held-out text, and where candidates are kept."""

    source: Checkpoint
    scores: Scores
    files: tuple[TokenFile, ...]
    seq_len: int
    options: SearchOptions

    def loss(self, shape: Shape) -> np.ndarray:
        """Held-out loss per window of the source cut to `shape`: (window,)."""
        if shape == self.source.shape:
            return self.loss_of(self.source.path, "source")
        name = shape_name(shape)
        place = self.options.output / "candidates" / name
        return self.loss_of(cut_candidate(self.source, self.scores, shape, place), name)

    def loss_of(self, model: Path, name: str) -> np.ndarray:
        return held_out_losses(
            model,
            self.files,
            seq_len=self.seq_len,
            windows=self.options.eval_windows,
            device=self.options.device,
            cache=self.options.output / "losses" / f"{name}.json",
        )


def search(options: SearchOptions, say: Say) -> SearchResult:
    """Rank every shape in the budget. Stages already done by an earlier call with the same output are found again."""
    bench = _open(options)
    found = enumerate_shapes(bench.source, options)
    claim(options, bench.seq_len)
    say(f"{len(found)} shapes in the budget; forecasting from the importance they keep")
    say("measuring the source and one cut per axis, to weigh the axes against each other")
    source = bench.source.shape
    source_loss = float(bench.loss(source).mean())
    found = accepted(bench.source, found, say)
    weights = _weigh(bench, [c.shape for c in found], source_loss)
    entries = [Entry(c, forecast(features(bench.scores, source, c.shape), weights)) for c in found]
    entries.sort(key=Entry.sort_key)
    front = _timed(bench, entries, say)
    for number, entry in enumerate(front, 1):
        entry.losses = bench.loss(entry.candidate.shape)
        name = shape_name(entry.candidate.shape)
        say(f"measured {number}/{len(front)}: {name} {entry.losses.mean():.4f} nats per token")
    front.sort(key=Entry.sort_key)
    if options.refine:
        from minitron_cli.search.refine import refine

        refine(bench, front[: options.refine], say)
    bound = options.speed is not None and options.speed.binds
    too_slow = [e for e in entries if options.speed and e.speed and not e.speed.holds(options.speed)]
    entries = sorted(front if bound else entries, key=Entry.sort_key)
    mark_ties(entries)
    return SearchResult(source, source_loss, entries, weights, too_slow)


def _open(options: SearchOptions) -> Bench:
    source = open_checkpoint(options.model)
    check_place(source, options)
    if options.speed is not None:
        # Every candidate has the source's context: what is too long shows before anything is measured.
        context = context_length(source.config)
        check_context([(str(source.path), context)], options.speed.cells, "--bench-grid")
    scores, _ = read_scores(options.scores)
    return Bench(source, scores, _held_out(source, options), window_length(source, options), options)


def _timed(bench: Bench, entries: list[Entry], say: Say) -> list[Entry]:
    """The entries to measure the loss of: the best by their forecast, where a speed is asked for those that hold it."""
    options, source = bench.options, bench.source
    if options.speed is None:
        return entries[: options.measure]
    watch = Stopwatch(bench, options.speed, say)
    if options.speed.binds:
        size = num_parameters(source.family.expected(source.config), source.shape)
        return fast_enough(watch, Candidate(source.shape, size, size), entries, options.measure, say)
    for entry in entries[: options.measure]:
        entry.speed = watch.speed(entry.candidate.shape, shape_name(entry.candidate.shape))
    return entries[: options.measure]


def _weigh(bench: Bench, shapes: list[Shape], source_loss: float) -> dict[str, float]:
    """Weights of the forecast, from measured cuts of one axis each at the sizes that the candidates ask for.

    An additive model: what two cuts cost together is taken to be what they cost apart. An axis of which no such cut can
    be built keeps the weight 1.
    """
    source, measured = bench.source.shape, []
    for single in single_cuts(bench.source, shapes):
        loss = float(bench.loss(single).mean())
        measured.append((features(bench.scores, source, single), loss - source_loss))
    return calibrate(measured)


def mark_ties(entries: list[Entry]) -> None:
    """A tie with the best of the same stage: the paired difference is within two standard errors."""
    if not entries or entries[0].latest is None:
        return
    best = entries[0]
    for entry in entries[1:]:
        if entry.stage == best.stage and entry.latest is not None and best.latest is not None:
            difference = entry.latest - best.latest
            error = difference.std(ddof=1) / np.sqrt(len(difference)) if len(difference) > 1 else 0.0
            entry.tied = bool(difference.mean() <= 2 * error)


def _held_out(source: Checkpoint, options: SearchOptions) -> tuple[TokenFile, ...]:
    return token_files(parse_sources(list(options.eval_data)), source.path, options.separator, options.text_field)
