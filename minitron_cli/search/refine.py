"""Distill the best few candidates for a while: rankings right after pruning are not the rankings that last.

In the paper they flip within the first hundreds of steps (Minitron, arXiv 2407.14679, figure 9). Two rounds: every
candidate gets a quarter of the budget; those that are then worse than the best by more than three paired standard
errors *and* a tenth of what training has won so far are given up; the rest are trained on the whole budget.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from minitron_cli.checkpoint.provenance import read_manifest
from minitron_cli.search.options import Entry, shape_name, standard_error
from minitron_cli.training.presets import resolve
from minitron_cli.training.run import train

if TYPE_CHECKING:
    from minitron_cli.search.run import Bench

Say = Callable[[str], None]
_FIRST_SHARE = 4


def refine(bench: "Bench", entries: list[Entry], say: Say) -> None:
    """Set `refined` of the entries that reach the end; every training run is resumed if it was interrupted."""
    tokens = bench.options.refine_tokens
    early = {id(entry): _distilled_loss(bench, entry, tokens // _FIRST_SHARE, say) for entry in entries}
    best = min(entries, key=lambda entry: early[id(entry)].mean())
    for entry in entries:
        name = shape_name(bench.source.shape, entry.candidate.shape)
        if hopeless(early[id(entry)], early[id(best)], entry.losses):
            say(f"{name}: given up after {tokens // _FIRST_SHARE:,} tokens")
            continue
        entry.refined = _distilled_loss(bench, entry, tokens, say)


def hopeless(losses: np.ndarray, best: np.ndarray, start: np.ndarray | None) -> bool:
    """Whether a candidate's early losses (window,) are beyond hope against the best one's on the same windows."""
    gap = losses - best
    won = float(start.mean() - losses.mean()) if start is not None else 0.0
    return bool(gap.mean() > 3 * standard_error(gap) and gap.mean() > 0.1 * max(won, 0.0))


def _distilled_loss(bench: "Bench", entry: Entry, tokens: int, say: Say) -> np.ndarray:
    name = shape_name(bench.source.shape, entry.candidate.shape)
    model = _distill(bench, name, tokens, say)
    losses = bench.loss_of(model, model.name)
    say(f"{name}: {losses.mean():.4f} nats per token after {tokens:,} tokens")
    return losses


def _distill(bench: "Bench", name: str, tokens: int, say: Say) -> Path:
    options = bench.options
    output = options.output / "refined" / f"{name}-{tokens}"
    if read_manifest(output) is None:
        say(f"distilling {name} on {tokens:,} tokens")
        steps = max(1, tokens // (options.batch * bench.seq_len))
        given = {
            "verb": "distill",
            "student": str(options.output / "candidates" / name),
            "teacher": (str(bench.source.path),),
            "data": options.data,
            "output": str(output),
            "steps": steps,
            "batch": options.batch,
            "seq_len": bench.seq_len,
            "lr": options.lr,
            "warmup": max(1, steps // 10),
            "loss": "logits",
            "seed": options.seed,
            "separator": options.separator,
            "text_field": options.text_field,
            "device": options.device,
        }
        train(resolve(given, None))
    return output
