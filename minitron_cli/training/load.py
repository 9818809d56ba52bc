"""Bring a student and its teachers into memory."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without transformers' own progress bars: the trainer has one."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@quiet_transformers()
def load_student(path: Path, *, from_scratch: bool, seed: int, trust_remote_code: bool = False) -> nn.Module:
    """The model to train, float32 on the CPU, in training mode; from scratch its weights are new, made by a seed."""
    from transformers import AutoConfig, AutoModelForCausalLM

    if from_scratch:
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=trust_remote_code)
    else:
        model = AutoModelForCausalLM.from_pretrained(
            path, dtype=torch.float32, trust_remote_code=trust_remote_code, use_safetensors=True
        )
    model.config.use_cache = False
    return model.train()


@quiet_transformers()
def load_teacher(path: Path, dtype: torch.dtype, trust_remote_code: bool = False) -> nn.Module:
    """A frozen model in `dtype` on the CPU, in evaluation mode."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        path, dtype=dtype, trust_remote_code=trust_remote_code, use_safetensors=True
    )
    model.config.use_cache = False
    return model.eval().requires_grad_(False)


def run_again_in_backward(blocks: Iterable[nn.Module]) -> None:
    """Activation checkpointing: keep each block's input, and run it again when its gradient is due."""
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
