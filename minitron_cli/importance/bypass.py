"""Run a model as if some of its layers were not there, without building another one.

Every family computes masks, positions, final norm, logit scale and softcap in its own forward pass, so that pass itself
is kept and only the blocks' `forward` is replaced for its duration.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from minitron_cli.hf.hooks import block_input, replaced
from minitron_cli.hf.parts import decoder_of

LOGIT_ELEMENTS = 1 << 26  # logits made at a time: 256 MB in float32


def without(
    blocks: Sequence[nn.Module], skipped: Sequence[int], start: tuple[int, Tensor] | None, as_tuple: bool
) -> dict[nn.Module, Callable[..., Any]]:
    """Forwards of the blocks that do not run: for `replaced`.

    `skipped` layers hand on what they get. `start` = (layer, hidden): this layer and all before it do not run either,
    and its output is `hidden` (batch, token, hidden).
    """

    def hand_on(*args: Any, **kwargs: Any) -> Any:
        hidden = block_input(args, kwargs)
        return (hidden,) if as_tuple else hidden

    found: dict[nn.Module, Callable[..., Any]] = {blocks[layer]: hand_on for layer in skipped}
    if start is not None:
        layer, hidden = start
        found |= {blocks[earlier]: hand_on for earlier in range(layer)}
        found[blocks[layer]] = lambda *args, **kwargs: (hidden,) if as_tuple else hidden
    return found


def answers_with_tuple(model: Any, blocks: Sequence[nn.Module], device: torch.device) -> bool:
    """Whether this family's blocks return a tuple or the bare hidden states, seen on two tokens."""
    seen: list[bool] = []
    handle = blocks[0].register_forward_hook(lambda module, args, output: seen.append(isinstance(output, tuple)))
    ids = torch.zeros(1, 2, dtype=torch.int64, device=device)
    with torch.inference_mode():
        decoder_of(model)(input_ids=ids, use_cache=False)
    handle.remove()
    return seen[0]


def logits_of(model: Any, hidden: Tensor) -> Tensor:
    """What the model's own head makes of final hidden states: (token, hidden) -> (token, vocab) float32."""
    from transformers.modeling_outputs import MoeModelOutputWithPast

    ready = MoeModelOutputWithPast(last_hidden_state=hidden[None])
    ids = torch.zeros(1, len(hidden), dtype=torch.int64, device=hidden.device)
    with replaced({decoder_of(model): lambda *args, **kwargs: ready}):
        return model(input_ids=ids, use_cache=False).logits[0].float()


def chunk_tokens(vocab: int) -> int:
    """How many tokens' logits may exist at a time."""
    return max(1, LOGIT_ELEMENTS // vocab)
