"""Bring a student and its teachers into memory: empty, to be sharded and filled in place, or whole at once."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from minitron_cli.hf.draw import draw
from minitron_cli.hf.empty import empty_model, materialise
from minitron_cli.hf.fill import fill
from minitron_cli.hf.load import load_config, loading
from minitron_cli.hf.process_group import CPU


def empty_student(path: Path, trust_remote_code: bool = False) -> nn.Module:
    """The model to train, float32, in training mode; its parameters have no memory yet (see hf/empty.py)."""
    return _empty(path, torch.float32, trust_remote_code).train()


def empty_teacher(path: Path, dtype: torch.dtype, trust_remote_code: bool = False) -> nn.Module:
    """A frozen model in `dtype`, in evaluation mode; its parameters have no memory yet."""
    return _empty(path, dtype, trust_remote_code).eval().requires_grad_(False)


def _empty(path: Path, dtype: torch.dtype, trust_remote_code: bool) -> nn.Module:
    config = load_config(path, trust_remote_code)
    with loading(path):
        model = empty_model(config, dtype, trust_remote_code)
    model.config.use_cache = False
    return model


def fill_student(student: nn.Module, path: Path, seed: int | None = None) -> None:
    """Read the weights of a student that has memory, or draw new ones by a seed: each rank its own part."""
    if seed is None:
        fill(student, path)
    else:
        draw(student, seed)


def load_student(path: Path, *, from_scratch: bool, seed: int, trust_remote_code: bool = False) -> nn.Module:
    """The model to train whole on the CPU, float32, in training mode; from scratch its weights are made by a seed."""
    model = empty_student(path, trust_remote_code)
    materialise(model, CPU)
    fill_student(model, path, seed if from_scratch else None)
    return model


def load_teacher(
    path: Path, dtype: torch.dtype, trust_remote_code: bool = False, device: torch.device = CPU
) -> nn.Module:
    """A frozen model whole on one device, in `dtype`, in evaluation mode."""
    model = empty_teacher(path, dtype, trust_remote_code)
    materialise(model, device)
    fill(model, path)
    return model


def run_again_in_backward(blocks: Iterable[nn.Module]) -> None:
    """Activation checkpointing: keep each block's input, and run it again when its gradient is due."""
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
