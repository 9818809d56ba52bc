"""One model in memory for everything that is measured on it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minitron_cli.hf.context import context_length

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True, slots=True, eq=False)
class LoadedModel:
    """A causal language model ready to be measured: evaluation mode, on its device, with its tokenizer."""

    name: str
    path: Path
    model: nn.Module
    tokenizer: Any
    device: torch.device
    dtype: str

    @property
    def num_parameters(self) -> int:
        """Parameters as stored: a tied head counts once."""
        return sum(parameter.numel() for parameter in self.model.parameters())


def load_model(
    path: Path, *, device: str = "auto", dtype: str = "auto", name: str | None = None, trust_remote_code: bool = False
) -> LoadedModel:
    """Load the checkpoint directory `path`; whatever keeps it from loading is a MinitronError that names the model."""
    from minitron_cli.hf.devices import choose_device, choose_dtype, dtype_name
    from minitron_cli.hf.load import load_model as load_weights
    from minitron_cli.hf.load import load_tokenizer

    where = choose_device(device)
    resolved = choose_dtype(dtype, where)
    tokenizer = load_tokenizer(path, trust_remote_code)
    model = load_weights(path, resolved, where, trust_remote_code=trust_remote_code)
    return LoadedModel(name or path.name or str(path), path, model, tokenizer, where, dtype_name(resolved))


def max_context(loaded: LoadedModel) -> int | None:
    """The longest input that the model takes by its config, in tokens; None where it states no limit."""
    config: Any = loaded.model.config
    return context_length(config.get_text_config().to_dict())
