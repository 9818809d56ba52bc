"""Bring a model into memory for measuring, and find its parts by the names that the axis table gives them."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from minitron_cli.errors import MinitronError
from minitron_cli.importance.parallel import local_rank

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_device(name: str) -> torch.device:
    """`auto` is this process's GPU where there is one, else the CPU."""
    if name == "auto":
        return torch.device("cuda", local_rank()) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise MinitronError(f"--device {name!r} is no device", "use auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise MinitronError(
            f"--device {name}: {torch.cuda.device_count()} GPUs are visible to torch",
            "use --device cpu, or another index",
        )
    return device


def choose_dtype(name: str, device: torch.device) -> str:
    """`auto` is bfloat16 on a GPU that has it and float32 elsewhere."""
    if name == "auto":
        return "bfloat16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "float32"
    if name not in DTYPES:
        raise MinitronError(f"--dtype {name!r} is unknown", f"one of auto, {', '.join(DTYPES)}")
    return name


def load_model(
    path: Path, dtype: str, device: torch.device, device_map: str | None = None, trust_remote_code: bool = False
) -> Any:
    """The causal LM of a directory in evaluation mode, without a cache: on one device, or placed by accelerate."""
    from transformers import AutoModelForCausalLM

    placed: dict[str, Any] = {"device_map": device_map} if device_map else {}
    with quiet():
        model: Any = AutoModelForCausalLM.from_pretrained(
            path, dtype=DTYPES[dtype], use_safetensors=True, trust_remote_code=trust_remote_code, **placed
        )
    model.config.use_cache = False
    model = model if device_map else model.to(device)
    return model.eval().requires_grad_(False)


def module_names(model: Any, names: Iterable[str]) -> dict[str, str]:
    """Disk name of a weight -> name of the module that holds it in memory.

    Most names are the same in both; where transformers renames on load, its own conversion mapping is followed.
    """
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    found, rename = {}, None
    for name in names:
        inside = name
        if inside not in parameters:
            rename = rename or _renamer(model)
            inside = rename(name)
        assert inside in parameters, f"{type(model).__name__} has no parameter for {name}"
        found[name] = inside.rpartition(".")[0]
    return found


def _renamer(model: Any) -> Any:
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    mapping = get_model_conversion_mapping(model)
    renamings = [m for m in mapping if isinstance(m, WeightRenaming)]
    converters = [m for m in mapping if isinstance(m, WeightConverter)]
    return lambda name: rename_source_key(name, renamings, converters)[0]


def block_names(modules: Iterable[tuple[str, int]]) -> dict[int, str]:
    """Layer -> name of its decoder block, from (module name, layer) of any modules inside: "model.layers.3"."""
    found: dict[int, str] = {}
    for name, layer in modules:
        parts = name.split(".")
        found[layer] = ".".join(parts[: parts.index(str(layer)) + 1])
    return found


def hidden_states(output: Any) -> torch.Tensor:
    """The hidden states of a decoder block's output, which is a tensor or a tuple that starts with one."""
    return output[0] if isinstance(output, tuple) else output


def block_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """The hidden states that a decoder block was called with."""
    return args[0] if args else kwargs["hidden_states"]


def base_model(model: Any) -> nn.Module:
    """The decoder without its language-model head."""
    return model.get_decoder()


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from showing bars, and from warning of weights that are left out on purpose."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
