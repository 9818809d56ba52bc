"""What a model of text and images has beside its text model, by its config alone: transformers builds it, without
memory."""

from collections.abc import Mapping
from typing import Any

import torch

from minitron_cli.checkpoint.architecture import Beside, item_bytes
from minitron_cli.families import wrapper_of
from minitron_cli.hf.load import config_of
from minitron_cli.hf.quiet import quiet


def beside_of(config: Mapping[str, Any]) -> Beside:
    """The lines of the weights beside the text model of a whole config.json, with the bytes that an element of each
    takes on disk; none where nothing stands around it."""
    wrapper = wrapper_of(str(config.get("model_type")))
    if wrapper is None:
        return ()
    from transformers import AutoModelForImageTextToText

    with quiet(), torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config_of(config))
    lines = (
        wrapper.line(name, tuple(tensor.shape), wrapper.prefixes[0])
        for name, tensor in model.state_dict().items()
        if wrapper.prefixes[0].inside(name) is None
    )
    return tuple((line, item_bytes(config)) for line in lines if line is not None)
