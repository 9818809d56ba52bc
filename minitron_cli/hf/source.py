"""The model of a checkpoint whole in memory: by transformers' own loader, or by our reader where it is quantised."""

from dataclasses import replace
from typing import Any

import torch

from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.hf.fill import filled_model
from minitron_cli.hf.load import config_of, load_model
from minitron_cli.hf.process_group import CPU


def load_source(
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    device: torch.device = CPU,
    *,
    device_map: str | None = None,
    trust_remote_code: bool = False,
) -> Any:
    """The frozen causal LM of a checkpoint in `dtype`, on `device` or placed by accelerate (`device_map`).

    Quantised weights are the values that `prune` writes: transformers would keep them quantised where it has kernels.
    """
    if not checkpoint.dequantised:
        return load_model(checkpoint.path, dtype, device, device_map=device_map, trust_remote_code=trust_remote_code)
    tensors = {name: replace(checkpoint.tensors[name], name=name) for name in checkpoint.matches}
    return filled_model(config_of(checkpoint.config), dtype, checkpoint.path, device, tensors).requires_grad_(False)
