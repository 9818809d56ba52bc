"""A search's directory: candidates that are cut, and their held-out losses; what exists is not made again."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from pathlib import Path

import numpy as np

from minitron_cli.checkpoint.kept import kept
from minitron_cli.checkpoint.provenance import read_manifest
from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.data.prepare import token_files
from minitron_cli.data.source import held_out_sources
from minitron_cli.data.tokens import TokenFile
from minitron_cli.evaluate.model import load_model
from minitron_cli.evaluate.perplexity import token_losses
from minitron_cli.hf.context import batch_size
from minitron_cli.prune.execute import prune
from minitron_cli.prune.request import Measurement, request_from_options
from minitron_cli.prune.vocabulary import Vocabulary
from minitron_cli.search.request import SearchRequest
from minitron_cli.search.stretches import bits_per_byte
from minitron_cli.spec.axes import COUNTED_AXES
from minitron_cli.spec.proxy import features
from minitron_cli.spec.scores import Scores
from minitron_cli.spec.shape import Shape, cut_flags


@dataclass(frozen=True, slots=True)
class Workspace:
    """What measuring a candidate needs: the source, its scores, the held-out text, and where results are kept.

    Where the vocabulary is searched `vocabulary` is the source's as the text uses it, and `ends` cut each file (see
    search/stretches).
    """

    source: Checkpoint
    scores: Scores
    files: tuple[TokenFile, ...]
    seq_len: int
    request: SearchRequest
    vocabulary: Vocabulary | None = None
    ends: Sequence[np.ndarray] | None = None

    def features(self, shape: Shape) -> dict[str, float]:
        """What a cut to `shape` loses by axis (see `spec.proxy`), and by the tokens that go."""
        found = features(self.scores, self.source.shape, shape)
        if self.vocabulary is None:
            return found
        return found | {axis: -log(self.vocabulary.share_kept(shape[axis])) for axis in COUNTED_AXES}

    def loss(self, shape: Shape) -> np.ndarray:
        """Held-out loss per window of the source cut to `shape`: (window,)."""
        if shape == self.source.shape:
            return self.loss_of(self.source.path, "source")
        name = self.request.name(shape)
        place = self.request.output / "candidates" / name
        if read_manifest(place) is None:
            source = self.source.shape
            cut = {**cut_flags(source, shape), **prune_inputs(self.request, source, shape), "output": place}
            prune(request_from_options(str(self.source.path), cut), _no_measuring)
        return self.loss_of(place, name)

    def loss_of(self, model: Path, name: str) -> np.ndarray:
        files = self.files if self.ends is None else held_out(self.request, model)
        return held_out_losses(
            model,
            files,
            seq_len=self.seq_len,
            windows=self.request.eval_windows,
            device=self.request.device,
            cache=self.request.output / "losses" / f"{name}.json",
            ends=self.ends,
        )


def prune_inputs(request: SearchRequest, source: Shape, shape: Shape) -> dict[str, tuple[str, ...]]:
    """What `minitron prune` reads to cut the source to a candidate, by flag; the text too, where tokens are counted."""
    counts = any(shape[axis] != source[axis] for axis in COUNTED_AXES)
    return {"scores": (str(request.scores),)} | ({"data": request.data} if counts else {})


def held_out(request: SearchRequest, model: Path) -> tuple[TokenFile, ...]:
    """The held-out text in a model's tokens."""
    return token_files(held_out_sources(request.eval_data), model, request.separator, request.text_field)


def _no_measuring(measurement: Measurement) -> None:
    raise AssertionError("a search has scores")


def held_out_losses(
    model: Path,
    files: tuple[TokenFile, ...],
    *,
    seq_len: int,
    windows: int,
    device: str,
    cache: Path,
    ends: Sequence[np.ndarray] | None = None,
) -> np.ndarray:
    """Mean nats per token of each held-out window: (window,), windows shared evenly over the files.

    With `ends` of stretches of text, bits per byte of each of those. The result is kept in `cache`, keyed by the
    settings; `model` must not change under it.
    """
    identity = {"files": [f.header.tokens_sha256 for f in files], "seq_len": seq_len, "windows": windows}
    if ends is not None:
        identity |= {"bytes": [float(end[-1]) for end in ends]}
    losses, _ = kept(cache, identity, lambda: _measure(model, files, seq_len, windows, device, ends).tolist())
    return np.array(losses)


def _measure(
    model: Path,
    files: tuple[TokenFile, ...],
    seq_len: int,
    windows: int,
    device: str,
    ends: Sequence[np.ndarray] | None,
) -> np.ndarray:
    import torch

    loaded = load_model(model, device=device)
    if ends is not None:
        return np.concatenate([bits_per_byte(loaded, file, end, seq_len) for file, end in zip(files, ends)])
    batch = batch_size(None, seq_len, "cpu")
    found = []
    for file in files:
        count = min(file.num_windows(seq_len), max(1, windows // len(files)))
        for first in range(0, count, batch):
            ids = torch.from_numpy(file.windows(np.arange(first, min(first + batch, count)), seq_len))
            found.append(token_losses(loaded.model, ids.to(loaded.device))[0].mean(-1))
    return np.concatenate(found)
