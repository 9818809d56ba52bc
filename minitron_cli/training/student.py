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

from minitron_cli.errors import MinitronError


def backbone_of(model: Any) -> nn.Module:
    """The model below the head: ids -> last hidden state, final norm applied."""
    backbone = model.base_model
    if backbone is model:
        raise MinitronError(
            f"{type(model).__name__} does not separate its backbone from its head", "give a causal language model"
        )
    return backbone


def blocks_of(backbone: Any) -> nn.ModuleList:
    """The decoder blocks, in order."""
    count = backbone.config.num_hidden_layers
    found = [m for m in backbone.children() if isinstance(m, nn.ModuleList) and len(m) == count]
    if len(found) != 1:
        raise MinitronError(
            f"{type(backbone).__name__} has {len(found)} lists of {count} blocks, where one was expected",
            "distil with --loss logits, which reads no block",
        )
    return found[0]


def compile_blocks(backbone: nn.Module, backend: str = "inductor") -> None:
    """Compile every decoder block in place, hooks included."""
    import torch._dynamo

    # Without guards on hooks the graph traced for one block would serve its neighbour, whose state is read elsewhere.
    torch._dynamo.config.skip_nnmodule_hook_guards = False
    for block in blocks_of(backbone):
        block.compile(backend=backend)


class Taps:
    """Runs a backbone and keeps the states after some blocks. Nothing is kept between calls."""

    def __init__(self, backbone: nn.Module, wanted: Sequence[int]) -> None:
        self.backbone = backbone
        self._states: dict[int, Tensor] | None = None
        self._norm: dict[int, nn.Module] = {}
        if not wanted:
            self._wanted: tuple[int, ...] = ()
            return
        blocks = blocks_of(backbone)
        self._wanted = tuple(sorted(set(wanted)))
        self._last = len(blocks) - 1
        for block in self._wanted:
            if block != self._last:
                self._tap(blocks, block)

    def _tap(self, blocks: nn.ModuleList, block: int) -> None:
        """Hook the norm that reads the state after `block`, or the block itself with the final norm to apply."""
        norm = getattr(blocks[block + 1], "input_layernorm", None)
        if norm is None:
            self._norm[block] = _final_norm(self.backbone)
        module = norm or (blocks[block] if block >= 0 else self.backbone.get_input_embeddings())  # type: ignore[operator]

        def keep(_: nn.Module, __: Any, output: Any) -> None:
            # Closed outside `run`: recomputation under activation checkpointing passes here a second time.
            if self._states is not None:
                self._states[block] = output[0] if isinstance(output, tuple) else output

        module.register_forward_hook(keep)

    def run(self, ids: Tensor, position_ids: Tensor | None = None) -> tuple[Tensor, dict[int, Tensor]]:
        """ids (B, S) -> last hidden state (B, S, H), normed, and {block: state (B, S, H)} of the wanted blocks."""
        self._states = {}
        device = self.backbone.get_input_embeddings().weight.device  # type: ignore[operator]
        extra = {} if position_ids is None else {"position_ids": position_ids.to(device)}
        last = self.backbone(input_ids=ids.to(device), use_cache=False, **extra).last_hidden_state
        states, self._states = self._states, None
        states |= {block: norm(states[block]) for block, norm in self._norm.items()}
        if self._last_wanted:
            states[self._last] = last
        return last, states

    @property
    def _last_wanted(self) -> bool:
        return bool(self._wanted) and self._wanted[-1] == self._last


def _final_norm(backbone: nn.Module) -> nn.Module:
    found = [module for name, module in backbone.named_children() if "norm" in name]
    assert len(found) == 1, f"{type(backbone).__name__} has {len(found)} norms behind its blocks"
    return found[0]


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
