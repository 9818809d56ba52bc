"""Models in memory: from a directory's safetensors, from tensors at hand, or with new weights; the tokenizer too.

transformers builds a model on the meta device and fills it shard by shard. Whatever it cannot load, and whatever it
would only warn about (weights that are missing), becomes a MinitronError that names the model.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from minitron_cli.checkpoint import reader
from minitron_cli.checkpoint.provenance import examine_hint
from minitron_cli.checkpoint.validation import spelled_floats
from minitron_cli.errors import MinitronError, first_line
from minitron_cli.hf.fill import filled_model, require_weights
from minitron_cli.hf.quiet import quiet

# What transformers raises for a config, weights or a tokenizer that do not fit together.
_REJECTIONS = (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, ImportError)


def load_model(
    path: Path,
    dtype: torch.dtype,
    device: torch.device | None = None,
    *,
    device_map: str | None = None,
    trust_remote_code: bool = False,
) -> Any:
    """The frozen causal LM of a directory, on `device` (None: the CPU) or placed by accelerate (`device_map`).

    Of a model of text and images, its text model.
    """
    from transformers import AutoModelForCausalLM

    if reader.wrapper_around(path) is not None and reader.stored_otherwise(path):
        if device_map:
            raise MinitronError(
                f"{path} stores weights of its text model transposed, which accelerate does not place",
                "leave --device-map out, or write the text model first: minitron prune MODEL --text-only -o OUT",
            )
        return _ready(filled_model(load_config(path), dtype, path, device), None)
    placed: dict[str, Any] = {"device_map": device_map} if device_map else {}
    with loading(path):
        if (prefixes := reader.text_prefixes(path)) is not None:
            names = {"^" + re.escape(begins): own for begins, own in prefixes.renamings().items()}
            placed |= {"config": load_config(path), "key_mapping": names}
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            **placed,
        )
    model, info = loaded
    require_weights(path, info["missing_keys"])  # transformers would go on with random weights in their place
    return _ready(model, None if device_map else device)


def new_model(config: Any, dtype: torch.dtype, device: torch.device) -> Any:
    """A frozen causal LM of a transformers config, with weights from torch's global generator (on "meta": none)."""
    from transformers import AutoModelForCausalLM

    with device:
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return _ready(model, None)


def model_of_tensors(config: Any, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype, device: torch.device) -> Any:
    """A frozen causal LM of a transformers config, its weights loaded from tensors under their names on disk."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    with quiet():
        model_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
        model = model_class.from_pretrained(None, config=config, state_dict=dict(tensors), dtype=dtype)
    return _ready(model, device)


def config_of(values: Mapping[str, Any]) -> Any:
    """The transformers config of a config.json dictionary; the dtype it names is left to whoever builds the model."""
    from transformers import AutoConfig

    left_out = ("model_type", "dtype", "torch_dtype")
    kept = {key: spelled_floats(value) for key, value in values.items() if key not in left_out}
    return AutoConfig.for_model(values["model_type"], **kept)


def load_config(path: Path, trust_remote_code: bool = False) -> Any:
    """The transformers config of a directory; of a model of text and images, that of its text model."""
    from transformers import AutoConfig

    with loading(path):
        if reader.wrapper_around(path) is not None:
            return config_of(reader.load_config(path))
        return AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)


def load_tokenizer(path: Path, trust_remote_code: bool = False) -> Any:
    """The transformers tokenizer of a directory."""
    from transformers import AutoTokenizer

    with loading(path):
        return AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)


def _ready(model: Any, device: torch.device | None) -> Any:
    return (model if device is None else model.to(device)).eval().requires_grad_(False)


@contextmanager
def loading(path: Path) -> Iterator[None]:
    """Turn what keeps transformers from loading a directory into a MinitronError, and keep transformers quiet."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    if not (path / "config.json").is_file():
        raise MinitronError(f"{path} is not a model directory: it has no config.json", "give a checkpoint directory")
    try:
        with quiet():
            yield
    except torch.OutOfMemoryError as error:
        raise MinitronError(
            f"{path} does not fit in the memory of the device", "use --dtype bfloat16 or another device"
        ) from error
    except (*_REJECTIONS, SafetensorError, StrictDataclassError) as error:
        raise MinitronError(f"{path} does not load: {first_line(error)}", examine_hint(path)) from error
