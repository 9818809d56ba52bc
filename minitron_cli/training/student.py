"""Where states are read in a HF model, and the map from the student's states to the teacher's.

The state after block k is read after the norm that reads it: the next block's input norm, or the final norm after the
last block (the paper's hidden states are "always post-LayerNorm", arXiv 2407.14679, section 3). It costs nothing: the
model has computed it; it tames the few huge channels of the residual stream by the gain the model uses; and it is what
the next block reads. Where blocks have no input norm (OLMo2) the model's final norm is applied to the block's output.
The embedding is the state after block -1.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from minitron_cli.hf.parts import blocks_of, decoder_of, final_norm_of, input_norm_of


def compile_blocks(model: nn.Module, backend: str = "inductor") -> None:
    """Compile every decoder block in place, hooks included."""
    import torch._dynamo

    # Without guards on hooks the graph traced for one block would serve its neighbour, whose state is read elsewhere.
    torch._dynamo.config.skip_nnmodule_hook_guards = False
    for block in blocks_of(model):
        block.compile(backend=backend)


class Taps:
    """Runs a model below its head and returns the states after some blocks too. Keeps nothing between calls."""

    def __init__(self, model: nn.Module, wanted: Sequence[int]) -> None:
        self.decoder = decoder_of(model)
        self._embedding: nn.Module = model.get_input_embeddings()  # type: ignore[operator]
        self._states: dict[int, Tensor] | None = None
        self._norm: dict[int, nn.Module] = {}
        self._last: int | None = None  # the last block where it is wanted: its state is what the decoder returns
        if wanted:
            blocks = blocks_of(model)
            for block in sorted(set(wanted)):
                if block == len(blocks) - 1:
                    self._last = block
                else:
                    self._tap(model, blocks, block)

    def _tap(self, model: nn.Module, blocks: nn.ModuleList, block: int) -> None:
        """Hook the norm that reads the state after `block`, or the block itself with the final norm to apply."""
        norm = input_norm_of(model, block + 1)
        if norm is None:
            self._norm[block] = final_norm_of(model)
        module = norm or (blocks[block] if block >= 0 else self._embedding)

        def keep(_: nn.Module, __: Any, output: Any) -> None:
            # Closed outside `run`: recomputation under activation checkpointing passes here a second time.
            if self._states is not None:
                self._states[block] = output[0] if isinstance(output, tuple) else output

        module.register_forward_hook(keep)

    def run(self, ids: Tensor, position_ids: Tensor | None = None) -> tuple[Tensor, dict[int, Tensor]]:
        """ids (B, S) -> last hidden state (B, S, H), normed, and {block: state (B, S, H)} of the wanted blocks."""
        self._states = {}
        device = next(self._embedding.parameters()).device
        extra = {} if position_ids is None else {"position_ids": position_ids.to(device)}
        last = self.decoder(input_ids=ids.to(device), use_cache=False, **extra).last_hidden_state
        states, self._states = self._states, None
        states |= {block: norm(states[block]) for block, norm in self._norm.items()}
        return last, states if self._last is None else states | {self._last: last}


def projection(
    student_hidden: int, teacher_hidden: int, origin: np.ndarray | None = None, seed: int = 0
) -> nn.Linear | None:
    """The linear map student -> teacher shared by all pairs: weight (teacher_hidden, student_hidden), no bias.

    With `origin` (teacher_hidden, student_hidden), the channels or directions that the student has kept, it starts as
    that, which puts every channel where it came from: a pruned student starts with the loss its cut deserves, not with
    that of a random map. Without it, it starts as a random isometry. None where the widths are equal: the channels mean
    the same already, and a learned map could only hide a difference that the next block will see.
    """
    if student_hidden == teacher_hidden:
        return None
    layer = nn.Linear(student_hidden, teacher_hidden, bias=False)
    with torch.no_grad():
        if origin is not None:
            assert origin.shape == (teacher_hidden, student_hidden), f"an origin {origin.shape}"
            layer.weight.copy_(torch.as_tensor(origin))
        else:
            nn.init.orthogonal_(layer.weight, generator=torch.Generator().manual_seed(seed))
    return layer
