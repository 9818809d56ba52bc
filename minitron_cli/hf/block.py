"""One decoder block at a time, as a model of its own: the checkpoint cut to a single layer, loaded by transformers.

Nothing here knows a family: the config is the one that pruning to this layer would write, and transformers' own loader
renames and fuses what has to be. The embedding and the head are left out (a few dummy rows stand in for them).
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from minitron_cli.checkpoint.hfconfig import pruned_config
from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.checkpoint.tensors import read_tensor
from minitron_cli.hf.hooks import Site, find_sites
from minitron_cli.hf.load import config_of, model_of_tensors
from minitron_cli.hf.parts import blocks_of, decoder_of
from minitron_cli.spec.family import Match
from minitron_cli.spec.plan import Plan
from minitron_cli.spec.shape import Shape

DUMMY_VOCAB = 8
_NO_IDS = {"vocab_size": DUMMY_VOCAB, "pad_token_id": None, "bos_token_id": None, "eos_token_id": None}


@dataclass(frozen=True, slots=True)
class Block:
    """Layer `layer` of the source as a one-layer causal LM: its decoder, the block in it, its sites (real layer)."""

    layer: int
    model: Any
    decoder: Any
    module: Any
    sites: tuple[Site, ...]


@dataclass(frozen=True, slots=True)
class Tensors:
    """What one layer's model is loaded from: tensors under the names of layer 0, and their lines."""

    layer: int
    vocab: bool  # whether the embedding is among them
    tensors: dict[str, torch.Tensor]
    matches: dict[str, Match]


def build_block(checkpoint: Checkpoint, read: Tensors, dtype: torch.dtype, device: torch.device) -> Block:
    """Build the one-layer model around tensors that `read_layer` has read."""
    model = model_of_tensors(_config(checkpoint, read.layer, read.vocab), read.tensors, dtype, device)
    alone = replace(checkpoint, shape=_alone(checkpoint.shape, read.layer), matches=read.matches)
    sites = find_sites(alone, model, device)
    real = tuple(replace(site, layer=read.layer, readers=_real_names(site, read)) for site in sites)
    return Block(read.layer, model, decoder_of(model), blocks_of(model)[0], real)


def _alone(shape: Shape, layer: int) -> Shape:
    return shape.with_(layer=1).of_layers([layer], shape)


def _config(checkpoint: Checkpoint, layer: int, vocab: bool) -> Any:
    target = _alone(checkpoint.shape, layer)
    plan = Plan(checkpoint.shape, target, {"layer": np.array([layer])} if checkpoint.shape["layer"] > 1 else {})
    values = pruned_config(checkpoint.config, checkpoint.family, plan)
    values = {**values, "tie_word_embeddings": True, **({} if vocab else _NO_IDS)}
    return config_of(values)


def read_layer(checkpoint: Checkpoint, layer: int, *, vocab: bool) -> Tensors:
    """Read a layer's tensors and those outside the layers; of the embedding and the head only with `vocab`."""
    tensors, matches = {}, {}
    for match in checkpoint.matches.values():
        if match.weight.junk or match.layer not in (None, layer) or ("vocab" in match.weight.axes and not vocab):
            continue
        name = _name(match, None if match.layer is None else 0)
        tensors[name] = read_tensor(checkpoint.tensors[match.name])
        if match.layer is not None:
            matches[name] = replace(match, name=name, layer=0)
    return Tensors(layer, vocab, tensors, matches)


def _name(match: Match, layer: int | None) -> str:
    places = {"layer": layer, "expert": match.expert}
    return match.weight.format(**{axis: place for axis, place in places.items() if place is not None})


def _real_names(site: Site, read: Tensors) -> tuple[str, ...]:
    return tuple(_name(read.matches[name], read.layer) for name in site.readers)
