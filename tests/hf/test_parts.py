"""Decoder, blocks and norms of every family, against what a forward pass shows."""

from itertools import pairwise
from typing import Any

import pytest
import torch

from minitron_cli.hf.hooks import block_input, block_output
from minitron_cli.hf.parts import blocks_of, decoder_of, final_norm_of, input_norm_of
from tests.toys import TOY_CONFIGS, toy_ids, toy_model

WITHOUT_INPUT_NORM = ("olmo2", "olmo3", "exaone4")


def _watched(module: torch.nn.Module) -> list[tuple[Any, Any]]:
    """(input, output) of every later call of a module."""
    calls: list[tuple[Any, Any]] = []
    module.register_forward_hook(
        lambda _, args, kwargs, output: calls.append((block_input(args, kwargs), block_output(output))),
        with_kwargs=True,
    )
    return calls


@pytest.mark.parametrize("model_type", TOY_CONFIGS)
def test_every_block_reads_through_its_input_norm(model_type):
    model = toy_model(model_type)
    blocks = blocks_of(model)
    assert len(blocks) == model.config.num_hidden_layers
    norms = [input_norm_of(model, layer) for layer in range(len(blocks))]
    around = [_watched(block) for block in blocks]
    inside = [_watched(norm) for norm in norms if norm is not None]
    last = _watched(final_norm_of(model))
    with torch.no_grad():
        states = decoder_of(model)(input_ids=toy_ids(2, 7), use_cache=False).last_hidden_state
    assert (len(inside) == 0) == (model_type in WITHOUT_INPUT_NORM)
    for block, norm in zip(around, inside):
        assert torch.equal(block[0][0], norm[0][0])
    for before, after in pairwise(around):
        assert torch.equal(before[0][1], after[0][0])
    assert torch.equal(last[0][0], around[-1][0][1])
    assert torch.equal(last[0][1], states)
