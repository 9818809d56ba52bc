"""A search's directory: candidates that are cut, and their held-out losses; what exists is not made again."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minitron_cli.checkpoint.atomic import atomic_file
from minitron_cli.checkpoint.provenance import read_manifest
from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.data.tokens import TokenFile
from minitron_cli.evaluate.model import load_model
from minitron_cli.evaluate.perplexity import token_losses
from minitron_cli.prune.execute import prune
from minitron_cli.prune.request import Measurement, request_from_options
from minitron_cli.search.request import SearchRequest
from minitron_cli.spec.scores import Scores
from minitron_cli.spec.shape import Shape, cut_flags, shape_name


@dataclass(frozen=True, slots=True)
class Workspace:
    """What measuring a candidate needs: the source, its scores, the held-out text, and where results are kept."""

    source: Checkpoint
    scores: Scores
    files: tuple[TokenFile, ...]
    seq_len: int
    request: SearchRequest

    def loss(self, shape: Shape) -> np.ndarray:
        """Held-out loss per window of the source cut to `shape`: (window,)."""
        if shape == self.source.shape:
            return self.loss_of(self.source.path, "source")
        name = shape_name(shape)
        place = self.request.output / "candidates" / name
        if read_manifest(place) is None:
            cut = {**cut_flags(self.source.shape, shape), "scores": self.request.scores, "output": place}
            prune(request_from_options(str(self.source.path), cut), _no_measuring)
        return self.loss_of(place, name)

    def loss_of(self, model: Path, name: str) -> np.ndarray:
        return held_out_losses(
            model,
            self.files,
            seq_len=self.seq_len,
            windows=self.request.eval_windows,
            device=self.request.device,
            cache=self.request.output / "losses" / f"{name}.json",
        )


def _no_measuring(measurement: Measurement) -> None:
    raise AssertionError("a search has scores")


def held_out_losses(
    model: Path, files: tuple[TokenFile, ...], *, seq_len: int, windows: int, device: str, cache: Path
) -> np.ndarray:
    """Mean nats per token of each held-out window: (window,), windows shared evenly over the files.

    The result is kept in `cache`, keyed by the settings; `model` must not change under it.
    """
    identity = {"files": [f.header.tokens_sha256 for f in files], "seq_len": seq_len, "windows": windows}
    if cache.is_file():
        found = json.loads(cache.read_text())
        if found["identity"] == identity:
            return np.array(found["losses"])
    losses = _measure(model, files, seq_len, windows, device)
    with atomic_file(cache) as temporary:
        temporary.write_text(json.dumps({"identity": identity, "losses": losses.tolist()}))
    return losses


def _measure(model: Path, files: tuple[TokenFile, ...], seq_len: int, windows: int, device: str) -> np.ndarray:
    import torch

    loaded = load_model(model, device=device)
    batch = max(1, 4096 // seq_len)
    found = []
    for file in files:
        count = min(file.num_windows(seq_len), max(1, windows // len(files)))
        for first in range(0, count, batch):
            ids = torch.from_numpy(file.windows(np.arange(first, min(first + batch, count)), seq_len))
            found.append(token_losses(loaded.model, ids.to(loaded.device))[0].mean(-1))
    return np.concatenate(found)
