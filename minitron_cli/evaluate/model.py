"""One model in memory for everything that is measured on it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minitron_cli.errors import MinitronError

if TYPE_CHECKING:
    import torch
    from torch import nn

DTYPES = ("auto", "float32", "bfloat16", "float16")


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


def resolve_device(name: str) -> torch.device:
    """`auto` is the GPU where there is one; a device that is not there is an error."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise MinitronError(f"{name!r} is not a device", "write cpu, cuda or cuda:1") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise MinitronError("no CUDA device is available here", "leave --device out, or write --device cpu")
    return device


def resolve_dtype(name: str, device: torch.device) -> str:
    """`auto` is bfloat16 on a GPU that has it and float32 elsewhere."""
    import torch

    if name not in DTYPES:
        raise MinitronError(f"{name!r} is not a dtype", f"known: {', '.join(DTYPES)}")
    if name != "auto":
        return name
    return "bfloat16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "float32"


def load_model(
    path: Path, *, device: str = "auto", dtype: str = "auto", name: str | None = None, trust_remote_code: bool = False
) -> LoadedModel:
    """Load the checkpoint directory `path`; whatever keeps it from loading is a MinitronError that names the model."""
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as hf_logging

    where = resolve_device(device)
    resolved = resolve_dtype(dtype, where)
    hf_logging.disable_progress_bar()
    if not (path / "config.json").is_file():
        raise MinitronError(f"{path} is not a model directory: it has no config.json", "give a checkpoint directory")
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=getattr(torch, resolved),
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise MinitronError(
            f"{path} does not load: {reason}", f"`minitron verify {path}` says what is wrong"
        ) from error
    model, info = loaded
    missing = sorted(info["missing_keys"])
    if missing:
        # transformers would go on with fresh random weights in their place.
        raise MinitronError(
            f"{path} lacks {len(missing)} of its weights: {', '.join(missing[:4])}{' ...' if missing[4:] else ''}",
            f"`minitron verify {path}` says what is wrong",
        )
    model = model.to(where).eval().requires_grad_(False)
    return LoadedModel(name or path.name or str(path), path, model, tokenizer, where, resolved)


def max_context(loaded: LoadedModel) -> int | None:
    """The longest input that the model says it takes."""
    config: Any = loaded.model.config
    return getattr(config.get_text_config(), "max_position_embeddings", None)
